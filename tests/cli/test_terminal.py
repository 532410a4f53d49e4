"""What commands show on a terminal: data that it does not obey, and ASCII where it has no more."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import on_narrow_terminal, text_flags, train_flags
from PIL import Image

from cit_train import cli

ROOT = Path(__file__).parents[2]
HOSTILE = "a\x1b]0;owned\x07\x1b[31mred\u202egnp\x9b2J[/red]"
# A terminal obeys them, or shows what follows them in another order.
OBEYED = {"\x1b", "\x07", "\x9b", "\u202e"}
PLAIN = {"LC_ALL": "C", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Path:
    out = tiny / "model"
    assert cli.run([*map(str, ("train", "default", *train_flags(tiny), "--out", out))]) is not None
    return out


def text_of(shown: str) -> str:
    """What a terminal shows in its order, without frames and line breaks."""
    return re.sub(r"[^!-~\ufffd]", "", shown)


# What a terminal obeys


@pytest.mark.faults("C3")
@pytest.mark.slow
def test_a_class_folder_with_a_hostile_name_is_inert_in_an_evaluation(
    model: Path, tmp_path: Path
) -> None:
    for name in (HOSTILE, "blue"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / name / "1.png")
    code, shown = on_narrow_terminal(
        *("eval", model, "--data", tmp_path / "data"), NO_COLOR="1", COLUMNS="60"
    )
    assert code == 0, shown
    assert not OBEYED & {*shown}
    assert "a\ufffd]0;owned\ufffd\ufffd[31mred\ufffdgnp\ufffd2J[" in text_of(shown)


@pytest.mark.faults("C3")
@pytest.mark.slow
def test_classes_and_pictures_with_hostile_names_are_inert_in_a_prediction(
    model: Path, tmp_path: Path
) -> None:
    picture = tmp_path / f"{HOSTILE.replace('/', '')}.png"
    Image.new("RGB", (32, 32)).save(picture)
    (tmp_path / "classes.txt").write_text(f"{HOSTILE}\nblue\n", encoding="utf-8")
    flags = ("--labels", tmp_path / "classes.txt")
    broken = tmp_path / f"broken {picture.name}"
    broken.write_bytes(b"no picture")
    code, shown = on_narrow_terminal(
        "predict", model, "--image", picture, broken, *flags, NO_COLOR="1", TERM="dumb"
    )
    assert code == 0, shown
    assert "not classified" in shown
    assert not OBEYED & {*shown}


@pytest.mark.faults("C3")
def test_runs_with_hostile_names_and_reasons_are_inert_in_a_status(tmp_path: Path) -> None:
    from cit_curate.run.ledger import Run

    name = HOSTILE.replace("/", "")
    for folder in (tmp_path, tmp_path / name):
        Run.create(folder / name, config={"max_updates": 6}, environment={})
        (folder / name / "status.json").write_text(json.dumps({"code": 4, "message": HOSTILE}))
    for args in ((tmp_path / name,), (tmp_path / name / name,)):
        code, shown = on_narrow_terminal("sweep", "status", *args, NO_COLOR="1")
        assert code == 0, shown
        assert "gnp" in text_of(shown)
        assert not OBEYED & {*shown}


@pytest.mark.faults("C3")
def test_hostile_flags_are_inert_in_a_batch_script_on_a_terminal(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    flags = ("--pool", HOSTILE, "--out", tmp_path / HOSTILE.replace("/", ""))
    for more in ((), ("--pool", tmp_path / HOSTILE)):
        command = ("launch", "slurm", "laptop", *flags, *more, "--time", "1:00:00", "--dry-run")
        _, shown = on_narrow_terminal(*command, NO_COLOR="1")
        assert "gnp" in text_of(shown)
        assert not OBEYED & {*shown}


@pytest.mark.faults("C3")
@pytest.mark.slow
def test_a_query_and_a_metadata_file_are_inert(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(f"{HOSTILE}\nblue\n", encoding="utf-8")
    sql = "SELECT chr(27) || '[31mred' || chr(8238) || 'gnp' AS \"a\x1b[31m\""
    for args in (
        ("query", run_folder, sql),
        ("query", run_folder, sql, "--csv"),
        ("query", run_folder, sql, "--json"),
        ("metadata", "show", tmp_path / "classes.txt"),
        ("metadata", "show", tmp_path / "classes.txt", "--json"),
    ):
        code, shown = on_narrow_terminal(*args, NO_COLOR="1")
        assert code == 0, shown
        assert "gnp" in text_of(shown)
        assert not OBEYED & {*shown}, args


# The one module that gives texts to a terminal.

TERMINAL = "cit_curate/terminal.py"
# Their texts are made printable first, or are our own.
FINE = {
    # Each cell was cleaned, if a terminal shows it.
    (
        "cit_curate/run/query_result.py",
        "csv_line([*header, *([GUARDED] if is_guarded else [])])",
    ),
    (
        "cit_curate/run/query_result.py",
        "csv_line(with_guards(names, cells) if is_guarded else cells)",
    ),
    ("cit_train/cli.py", "f\"cit {metadata.version('cit')}\\n\""),
    ("cit_train/cli.py", "'\\n'.join(lines)"),
    ("cit_train/cli.py", "overview()"),
    ("cit_train/cli.py", "f'{printable_lines(message)}\\n'"),
    ("cit_train/launch/command.py", "_overview()"),
    ("cit_train/launch/sweep_command.py", "_overview()"),
    ("cit_train/train_command.py", "_overview()"),
}


def raw_texts(source: str) -> Iterator[str]:
    """The arguments by which a module gives a text as it is to a terminal."""
    tree = ast.parse(source)
    literals = literal_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        shown: list[ast.expr] = []
        if name == "Text" or name.endswith((".print", ".add_row", ".add_column")):
            shown = node.args
        elif name in ("sys.stdout.write", "sys.stderr.write", "print"):
            shown = [value for value in node.args if not is_json(value)]
        elif name == "Table":
            shown = [each.value for each in node.keywords if each.arg == "title"]
        yield from (ast.unparse(value) for value in shown if not is_inert(value, literals))


def literal_names(tree: ast.Module) -> set[str]:
    """Variables of loops over texts of our own."""
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    texts = [node for node in loops if isinstance(node.iter, ast.Tuple)]
    return {
        ast.unparse(node.target)
        for node in texts
        if isinstance(node.iter, ast.Tuple)
        and all(isinstance(value, ast.Constant) for value in node.iter.elts)
    }


def is_inert(value: ast.expr, literals: set[str]) -> bool:
    if isinstance(value, ast.Call):
        name = ast.unparse(value.func)
        if name == "escape":  # of markup alone
            return is_inert(value.args[0], literals)
        return name in ("inert", "printable", "Text")  # those of Text are looked at by themselves
    return isinstance(value, ast.Constant) or ast.unparse(value) in literals


def is_json(value: ast.expr) -> bool:
    """Whether it is a JSON document in ASCII and its line break."""
    return bool(re.fullmatch(r"json\.dumps\(.*\) \+ '\\n'", ast.unparse(value)))


def ours() -> dict[str, str]:
    folders = (ROOT / "cit_curate", ROOT / "cit_train")
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    sources = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}
    return {path: source for path, source in sources.items() if path != TERMINAL}


@pytest.mark.faults("C3")
def test_every_text_that_a_command_shows_goes_through_the_module_that_makes_it_inert() -> None:
    found = {(path, text) for path, source in ours().items() for text in raw_texts(source)}
    assert found == FINE


@pytest.mark.faults("C3")
@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("console.print(Text(name))", ["name"]),
        ("Console().print(f'{name}: {count}')", ["f'{name}: {count}'"]),
        ("console.print(escape(name))", ["escape(name)"]),
        ("table.add_row(Text(name), str(count))", ["str(count)", "name"]),
        ("table.add_row(name)", ["name"]),
        ("table.add_column(name)", ["name"]),
        ("Table(title=f'on {data}')", ["f'on {data}'"]),
        ("sys.stdout.write(name)", ["name"]),
        ("for name in names: table.add_column(name)", ["name"]),
        ("for name in ('a', 'b'): table.add_column(name)", []),
        ("console.print(Text(printable(name)))", []),
        ("console.print(escape(printable(name)))", []),
        ("console.print('done')", []),
        ("table.add_row(inert(name), 'done')", []),
        ("sys.stdout.write(json.dumps(value) + '\\n')", []),
    ],
)
def test_a_text_that_is_shown_as_it_is_is_found(source: str, found: list[str]) -> None:
    assert sorted(raw_texts(source)) == sorted(found)


# ASCII


@pytest.mark.faults("G3")
@pytest.mark.slow
def test_a_narrow_ascii_terminal_gets_tables_and_lines_in_ascii_and_no_escape_codes(
    tiny: Path, run_folder: Path, tmp_path: Path
) -> None:
    from cit_curate.run.ledger import Run

    Run.create(tmp_path / "runs" / "caf\u00e9", config={"max_updates": 6}, environment={})
    for args in (
        ("pool", "info", tiny / "data/pool"),
        ("query", run_folder, "SELECT *, NULL AS nothing FROM selections"),
        ("query", run_folder, "SELECT 'caf' || chr(233) AS caption", "--csv"),
        ("sweep", "status", tmp_path / "runs"),
        ("metadata", "list"),
        ("curate", tiny / "data/pool", *text_flags(tiny), "--dry-run"),
        ("curate", "--help"),
    ):
        code, shown = on_narrow_terminal(*args, **PLAIN)
        assert code == 0, shown
        assert shown.isascii(), args
        assert "\x1b" not in shown, args
        assert "\\u" not in shown, args
        assert "Traceback" not in shown


@pytest.mark.faults("G3")
@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
@pytest.mark.slow
def test_training_on_a_narrow_ascii_terminal_shows_ascii_and_no_colours(
    tiny: Path, tmp_path: Path, terminal: str
) -> None:
    args = ("train", "default", *train_flags(tiny), "--out", tmp_path / "run")
    code, shown = on_narrow_terminal(*args, **PLAIN, TERM=terminal)
    assert code == 0, shown
    assert shown.isascii()
    assert "Traceback" not in shown
    assert "cit report" in shown
    # The bar of a terminal that can move its cursor moves it, and does nothing else.
    moved = re.sub(r"\x1b\[(\?25[lh]|\d*[AK])", "", shown) if terminal == "xterm" else shown
    assert "\x1b" not in moved
