import ast
import json
import math
from pathlib import Path

import pytest

from cit_curate.printing import print_json, show

ROOT = Path(__file__).parents[2]


def test_nan_and_infinity_are_null_wherever_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"ratios": (0.5, math.nan), "best": {"value": -math.inf}, 7: math.inf})
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {
        "ratios": [0.5, None],
        "best": {"value": None},
        "7": None,
    }
    assert out.endswith("}\n")


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(["caf\u00e9 \x1b[31m"])
    out = capsys.readouterr().out
    assert out == '[\n "caf\\u00e9 \\u001b[31m"\n]\n'
    assert json.loads(out) == ["caf\u00e9 \x1b[31m"]


def test_a_summary_is_lines_for_a_person_or_one_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show({"path": Path("run")}, ["run: done"], as_json=False)
    assert capsys.readouterr().out == "run: done\n"
    show({"path": Path("run")}, ["run: done"], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"path": "run"}


def test_only_one_module_writes_json_to_stdout() -> None:
    writers = [
        path.relative_to(ROOT).as_posix()
        for package in ("cit_curate", "cit_train")
        for path in sorted((ROOT / package).rglob("*.py"))
        if any(
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("sys.stdout.write", "print")
            and "dumps" in ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert writers == ["cit_curate/printing.py"]
