"""indexes <- cit_curate <- cit_train, never back; and what `--help` may not import."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Package -> the ones of ours that it may import.
ALLOWED = {
    "indexes": {"indexes"},
    "cit_curate": {"indexes", "cit_curate"},
    "cit_train": {"indexes", "cit_curate", "cit_train"},
}


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_no_import_points_back(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    for path in paths:
        ours = {name.split(".")[0] for name in imported_modules(path)} & ALLOWED.keys()
        assert ours <= ALLOWED[package], f"{path} imports {sorted(ours - ALLOWED[package])}"


def test_only_one_file_imports_faiss() -> None:
    importers = [
        path.relative_to(ROOT).as_posix()
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        if "faiss" in {name.split(".")[0] for name in imported_modules(path)}
    ]
    assert importers == ["indexes/faiss_index.py"]


def test_configs_import_the_standard_library_only() -> None:
    for path in (ROOT / "cit_curate" / "config.py", ROOT / "cit_train" / "config.py"):
        others = {name.split(".")[0] for name in imported_modules(path)} - ALLOWED.keys()
        assert others <= set(sys.stdlib_module_names), path


# Each takes a tenth of a second or more to import; torch takes seconds.
HEAVY = {"torch", "transformers", "faiss", "duckdb", "pyarrow", "numpy", "PIL", "pandas"}


def test_the_overview_loads_no_library_that_takes_long() -> None:
    code = (
        "import sys; import cit_train.cli as cli; cli.run(['--help']);"
        f"sys.exit(bool(({HEAVY} | {{'tyro', 'rich'}}) & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_no_help_of_a_command_loads_a_library_that_takes_long() -> None:
    code = (
        "import contextlib, io, sys\n"
        "import cit_train.cli as cli\n"
        "for verb in cli.VERBS:\n"
        "    names = {'train': 'default', 'sweep': 'alltask_5k_mr005', 'launch slurm': 'laptop'}\n"
        "    name = [names[verb]] if verb in names else []\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.run([*verb.split(), *name, '--help'])\n"
        f"    assert not {HEAVY} & sys.modules.keys(), (verb, {HEAVY} & sys.modules.keys())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "command",
    [
        ["curate", "no-pool", "--metadata", "imagenet"],
        ["curate", "--metadata", "imagenet"],
        ["train", "laptop", "--pool", "no-pool", "--metadata", "imagenet", "--out", "no-run"],
        ["train", "laptp"],
        ["eval", "no-model", "--data", "."],
        ["report", "no-run"],
        ["query", "no-run", "SELECT 1"],
        ["predict", "no-model", "--image", "no-picture", "--labels", "no-classes"],
    ],
)
def test_a_name_that_is_wrong_is_told_before_torch_is_loaded(
    command: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "import cit_train.cli as cli\n"
        "try:\n"
        f"    cli.run({command})\n"
        "except cli.CitError as error:\n"
        "    print(error)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.stdout.strip()


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("cit_curate.printing", ["cit_curate.run", "pyarrow"]),
        ("cit_curate.pool.mixture", ["cit_curate.pool.build", "cit_curate.sources"]),
        ("cit_curate.run.query", ["cit_curate.run.ledger"]),
        ("cit_train.streaming.batches", ["cit_train.streaming.shard_stream"]),
        ("cit_train.launch.plan", ["cit_train.train_command", "cit_train.launch.sweep_command"]),
    ],
)
def test_a_module_loads_none_of_those_that_it_does_without(module: str, others: list[str]) -> None:
    code = f"import sys, {module}; sys.exit(str([*({set(others)} & sys.modules.keys())] or ''))"
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert ended.stderr.strip() == ""
