"""The benchmark of large pools: what a command costs, how costs grow, which runs are alike."""

import subprocess
import sys

import pytest

from scripts.bench.process_tree import Spent, spent_by
from scripts.bench.scale_pool import (
    Bench,
    Row,
    check_same,
    disk_bytes,
    faster_than_linear,
    growth,
    table,
)

TREE = """
import subprocess, sys, time
held = bytearray({parent} << 20)
code = "import time; held = bytearray({child} << 20); time.sleep(1.5)"
subprocess.run([sys.executable, "-c", code], check=True)
"""


def row(captions: int, step: str, cpu: float, tree: float = 100.0, killed: bool = False) -> Row:
    return Row(captions, step, Spent(cpu, cpu, tree, 0, tree, killed), 10)


def test_the_memory_of_a_command_and_of_what_it_starts_is_seen(tmp_path):
    code = TREE.format(parent=80, child=160)
    spent = spent_by([sys.executable, "-c", code], tmp_path / "log")
    assert 80 < spent.parent < 160 < spent.child < 240 < spent.tree
    assert spent.wall > 1.5 > spent.cpu > 0


def test_a_command_is_killed_and_one_that_fails_says_why(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert spent_by(command, tmp_path / "log", kill_after=0.3).killed
    with pytest.raises(subprocess.CalledProcessError) as error:
        spent_by([sys.executable, "-c", "raise SystemExit('why')"], tmp_path / "log")
    assert error.value.output == b"why\n"


def test_a_step_that_was_measured_is_not_repeated(tmp_path):
    out = tmp_path / "tree"
    out.mkdir()
    (out / "a.py").write_text("")
    command = ("compileall", "-q", str(out))
    spent = Bench(tmp_path, tmp_path / "numbers.json").measure(5, "compile", command, writes=out)
    again = Bench(tmp_path, tmp_path / "numbers.json")
    assert again.measure(5, "compile", ("no_such_module",)) == spent
    assert again.rows == [Row(5, "compile", spent, disk_bytes(out))]


def test_growth_is_the_power_of_the_captions():
    assert growth(row(10, "a", 2), row(1_000, "a", 200), lambda row: row.spent.cpu) == 1
    assert growth(row(10, "a", 2), row(1_000, "a", 0), lambda row: row.spent.cpu) is None


def test_what_grows_faster_than_linearly_is_named():
    rows = [
        *(row(10, "linear", 10), row(100, "linear", 100)),
        *(row(10, "squared", 10), row(100, "squared", 1_000, tree=2_000)),
        *(row(10, "short", 0.01), row(100, "short", 1)),
        *(row(10, "killed", 1, killed=True), row(100, "killed", 100, killed=True)),
    ]
    assert faster_than_linear(rows) == [
        "squared: time grows as n^2.00 from 10 to 100",
        "squared: memory grows as n^1.30 from 10 to 100",
    ]
    lines = table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| squared | 10 | 10 |")
    assert lines[3].endswith("| 2.00 | 1.30 |")


def test_runs_of_other_bytes_end_the_benchmark(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        path = tmp_path / name / "selections" / "step=000000" / "lane=00000.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    check_same(tmp_path / "a", tmp_path / "b")
    with pytest.raises(SystemExit, match="differ"):
        check_same(tmp_path / "a", tmp_path / "c")
    assert disk_bytes(tmp_path) == 3
    assert disk_bytes(tmp_path / "a" / "selections" / "step=000000" / "lane=00000.parquet") == 1
