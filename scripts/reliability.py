"""Write docs/reliability.md: each fault of tests/faults.csv, its tests, and how they ended.

pytest --fault-results fast.json -m "not slow"; pytest --fault-results slow.json -m slow
python -m scripts.reliability --results fast.json slow.json    write the page
python -m scripts.reliability    write it with the results that it has
python -m scripts.reliability --check    fail when the page lacks a row or a test, or has others
"""

import argparse
import ast
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
TESTS = ROOT / "tests"
_INTRODUCTION = """\
# What can go wrong, and what happens then

This page lists nine promises and the faults that test them.

1. A selection that was reported as committed stays in the ledger, no matter when the process is
   killed.
2. A resumed run writes each outer step once.
3. The same run writes the same ledger, to the byte, on the same kind of machine, build and number
   of ranks. The hash seed, the number of threads and the loader's workers make no difference.
4. A run that was stopped and resumed ends with the same ledger and weights as one that was not.
5. One, two and four ranks see the same global batches. Their ledgers are identical after the first
   outer step, and later ones have the same pairs.
6. A bad row or picture is listed with its source and reason. Too many of them end the run with
   exit code 3.
7. Data never runs as code: nothing is unpickled, and text is inert on pages and terminals.
8. An error names the file, the row or key and the next step, and has an exit code
   ([all of them](formats.md)).
9. After a full disk, a preempted job or a lost rank, the run can be resumed.

Marks such as `@pytest.mark.faults("L4")` connect the tests with the rows of `tests/faults.csv`.
`python -m scripts.reliability` writes this page from these marks and the results of a test run. A
test checks that the page has the rows and tests of the marks.
"""

_LOAD = """\
## Load

`pytest tests/cit_train/loop/test_soak.py -m slow -s --soak-minutes 20`, once, 2026-11-27, on 2
cores with other tests running. A training run of tiny towers with one update per outer step, one
loader worker and `--keep-shards 4` made 7,434 outer steps. Maxima of the first and the second half:

- resident memory of all its processes: 1,890 and 1,892 MiB
- open files: 42 and 40; processes: 5 and 5
- outer steps with shards on the disk: 6 and 6
- shards and checkpoints: 1.54 and 1.52 MB

After the stop there was no temporary file and no damaged one. A run of 15 seconds is in the slow
set.
"""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of tests/faults.csv.

    `instead` says what stands in for a GPU or a cluster in its tests; empty if they need none.
    """

    id: str
    component: str
    fault: str
    promise: str
    instead: str


@dataclass(frozen=True, order=True)
class MarkedTest:
    """A test function: its file, relative to the folder of tests, and its name."""

    file: str
    name: str


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", nargs="+", type=Path, default=[], help="of --fault-results")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is stale")
    asked = parser.parse_args()
    written = PAGE.read_text(encoding="utf-8")
    results = merged(asked.results) if asked.results else written_results(written)
    wanted = page(faults(), marked_tests(TESTS), results)
    if not asked.check:
        PAGE.write_text(wanted, encoding="utf-8")
    elif without_results(written) != without_results(wanted):
        sys.exit(f"{PAGE.name} is not what the marks say; run: python -m scripts.reliability")


def faults() -> list[Fault]:
    """The rows of tests/faults.csv, in their order."""
    with (TESTS / "faults.csv").open(encoding="utf-8", newline="") as stream:
        return [Fault(**row) for row in csv.DictReader(stream, strict=True)]


def marked_tests(folder: Path) -> dict[str, list[MarkedTest]]:
    """The tests that name each row, by file and line.

    The marks are read from the source: to collect the tests, pytest imports every library.
    """
    found: dict[str, list[MarkedTest]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for row, name in _marked(tree.body, ()):
            found.setdefault(row, []).append(MarkedTest(path.relative_to(folder).as_posix(), name))
    return found


def _marked(body: Sequence[ast.stmt], outer: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Rows and names of the tests in a module or class, whose own mark names `outer`."""
    marks = [node.value for node in body if isinstance(node, ast.Assign) and _is_pytestmark(node)]
    rows = [*outer, *_rows(marks)]
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _marked(node.body, [*rows, *_rows(node.decorator_list)])
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            named = dict.fromkeys([*rows, *_rows(node.decorator_list)])
            yield from ((row, node.name) for row in named)


def _is_pytestmark(node: ast.Assign) -> bool:
    return ast.unparse(node.targets[0]) == "pytestmark"


def _rows(marks: Iterable[ast.expr]) -> Iterator[str]:
    """The rows that marks, or lists of marks, name."""
    for mark in marks:
        if isinstance(mark, ast.List | ast.Tuple):
            yield from _rows(mark.elts)
        elif isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.faults":
            yield from (ast.literal_eval(row) for row in mark.args)


def merged(paths: Iterable[Path]) -> dict[str, Counter[str]]:
    """The sums of several results, `{row: {passed, failed, skipped}}`."""
    sums: dict[str, Counter[str]] = {}
    for path in paths:
        for row, ended in json.loads(path.read_text(encoding="utf-8")).items():
            sums.setdefault(row, Counter()).update(ended)
    return sums


def written_results(text: str) -> dict[str, Counter[str]]:
    """The results of a written page, by row."""
    results: dict[str, Counter[str]] = {}
    for row, cell in re.findall(r"^\| (\w+) \|.*\| ([^|]*) \|$", text, flags=re.MULTILINE):
        counts = re.findall(r"(\d+) (passed|failed|skipped)", cell)
        results[row] = Counter({outcome: int(number) for number, outcome in counts})
    return {row: ended for row, ended in results.items() if row != "row"}


def page(
    rows: Iterable[Fault],
    tests: Mapping[str, Sequence[MarkedTest]],
    results: Mapping[str, Mapping[str, int]],
) -> str:
    """The page, as Markdown."""
    parts = [_INTRODUCTION]
    for component, group in groupby(rows, lambda row: row.component):
        parts.append(f"## {component.capitalize()}\n")
        parts.append("| row | fault | promise | tests | result |\n|---|---|---|---|---|")
        for row in group:
            instead = f" *Tested with {row.instead}.*" if row.instead else ""
            cells = [row.id, row.fault, row.promise + instead, _test_cell(tests.get(row.id, ()))]
            parts.append(f"| {' | '.join(cells)} | {_result_cell(results.get(row.id, {}))} |")
        parts.append("")
    return "\n".join([*parts, _LOAD])


def _test_cell(tests: Sequence[MarkedTest]) -> str:
    """The tests, those of a file together."""
    lines = []
    for file, group in groupby(tests, lambda test: test.file):
        names = ", ".join(f"`{test.name}`" for test in group)
        lines.append(f"[{file}](../tests/{file})::{names}")
    return "<br>".join(lines) or "none"


def _result_cell(ended: Mapping[str, int]) -> str:
    """Such as `12 passed, 1 skipped`; a dash where no test was run."""
    return ", ".join(f"{number} {outcome}" for outcome, number in ended.items() if number) or "–"


def without_results(text: str) -> str:
    """The page with the last cell of each row empty."""
    return re.sub(r"[^|]*\|$", "|", text, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
