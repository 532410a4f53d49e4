import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scripts.reliability import (
    PAGE,
    TESTS,
    Fault,
    MarkedTest,
    faults,
    marked_tests,
    merged,
    page,
    without_results,
    written_results,
)

MODULE = """\
import pytest
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.faults("P1")]

@pytest.mark.faults("P1", "P2")
@pytest.mark.parametrize("n", [1, 2])
def test_one(n):
    assert n == 1

@pytest.mark.faults("P3")
class TestMore:
    @pytest.mark.faults("P4")
    def test_two(self):
        pytest.skip("no reason")

def not_a_test():
    pass
"""


def test_the_page_has_the_rows_and_tests_of_the_marks() -> None:
    wanted = page(faults(), marked_tests(TESTS), {})
    committed = PAGE.read_text(encoding="utf-8")
    assert without_results(committed) == without_results(wanted), (
        "run: python -m scripts.reliability --results FILE..."
    )


def test_the_written_page_shows_that_each_of_the_83_faults_was_tested_and_passed() -> None:
    rows = [fault.id for fault in faults()]
    assert len(rows) == len(set(rows)) == 83
    marked = marked_tests(TESTS)
    assert [row for row in rows if not marked.get(row)] == []
    results = written_results(PAGE.read_text(encoding="utf-8"))
    # Of tests that are newer than the page nothing is said yet; of a row always something is.
    assert [*results] == rows
    assert [row for row in rows if not results[row]["passed"]] == []
    assert [row for row in rows if results[row]["failed"]] == []


def test_marks_are_read_as_pytest_collects_them(request: pytest.FixtureRequest) -> None:
    read: dict[MarkedTest, set[str]] = {}
    for row, tests in marked_tests(TESTS).items():
        for test in tests:
            read.setdefault(test, set()).add(row)
    for item in request.session.items:
        assert isinstance(item, pytest.Function)
        test = MarkedTest(item.path.relative_to(TESTS).as_posix(), item.originalname)
        rows = {row for mark in item.iter_markers("faults") for row in mark.args}
        assert read.get(test, set()) == rows, test


def test_marks_of_modules_classes_and_functions_add_up(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(MODULE)
    one, two = MarkedTest("test_it.py", "test_one"), MarkedTest("test_it.py", "test_two")
    assert marked_tests(tmp_path) == {"P1": [one, two], "P2": [one], "P3": [two], "P4": [two]}


def run_pytest(folder: Path, module: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Runs one module of tests with the conftest of these tests."""
    for name in ("conftest.py", "faults.csv"):
        (folder / name).write_bytes((TESTS / name).read_bytes())
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = faults(*rows): x\n")
    (folder / "test_it.py").write_text(module)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-n", "2")])
def test_results_are_counted_by_row(tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert run_pytest(tmp_path, MODULE, "--fault-results", "r.json", *flags).returncode == 1
    skipped = {"passed": 0, "failed": 0, "skipped": 1}
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "P1": {"passed": 1, "failed": 1, "skipped": 1},
        "P2": {"passed": 1, "failed": 1, "skipped": 0},
        "P3": skipped,
        "P4": skipped,
    }


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-n", "2")])
def test_a_mark_with_an_unknown_row_fails_the_collection(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    ended = run_pytest(tmp_path, MODULE.replace('"P4"', '"P99"'), *flags)
    assert ended.returncode
    assert "test_two: faults.csv has no row P99" in ended.stdout


def test_results_of_several_runs_are_added(tmp_path: Path) -> None:
    for name, passed in (("fast", 2), ("slow", 3)):
        ended = {"L4": {"passed": passed, "failed": 0, "skipped": 0}}
        (tmp_path / name).write_text(json.dumps(ended))
    assert merged([tmp_path / "fast", tmp_path / "slow"]) == {"L4": Counter(passed=5)}


def test_a_row_shows_its_tests_by_file_and_its_results() -> None:
    row = Fault(id="D6", component="ranks", fault="f", promise="p", instead="a stand-in")
    tests = {
        "D6": [
            MarkedTest("a.py", "test_x"),
            MarkedTest("a.py", "test_y"),
            MarkedTest("b.py", "test_z"),
        ]
    }
    shown = page([row], tests, {"D6": {"passed": 3, "failed": 0, "skipped": 1}})
    (line,) = (line for line in shown.splitlines() if line.startswith("| D6 "))
    assert line == (
        "| D6 | f | p *Tested with a stand-in.* | [a.py](../tests/a.py)::`test_x`, `test_y`"
        "<br>[b.py](../tests/b.py)::`test_z` | 3 passed, 1 skipped |"
    )
    assert written_results(shown) == {"D6": Counter(passed=3, skipped=1)}
    assert written_results(page([row], tests, {})) == {"D6": Counter()}
    assert without_results(shown) == without_results(page([row], tests, {}))
    assert without_results(shown) != without_results(page([row], {}, {}))
