"""Readers in this process, while another one commits: whole outer steps only."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_fixtures import small_run

from cit_curate.ledger import Run
from cit_curate.query import query_run

STEPS = 60
_WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from run_fixtures import scanned, write_step
from cit_curate.ledger import Run
run = Run.open(Path(sys.argv[1]))
for step in range(2, {steps}):
    rows = [
        scanned(each, outer_step=step, similarity=0.9, entry=0, classes=["cat"])
        for each in range(7)
    ]
    write_step(run, step, selections=rows)
    time.sleep(0.01)
"""


@contextmanager
def written(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A run of 7 selected pairs in each outer step, which another process goes on writing."""
    small_run(path)
    script = _WRITER.format(steps=STEPS)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(Path(__file__).parent)]
    )
    try:
        yield process
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.faults("L7")
def test_a_reader_sees_whole_outer_steps_while_another_process_commits(tmp_path: Path) -> None:
    seen = []
    with written(tmp_path / "run") as process:
        while process.poll() is None or len(seen) < 1000:
            run = Run.open(tmp_path / "run")
            if len(seen) % 2:
                steps = run.read("selections")["outer_step"].to_pylist()
                assert steps == sorted(steps)
                assert set(Counter(steps).values()) == {7}
                seen.append(len(steps) // 7)
            else:
                seen.append(len(run.commits()))
            if process.poll() is not None and seen[-1] == STEPS:
                break
    assert seen == sorted(seen)
    assert seen[-1] == STEPS
    assert len(set(seen)) > STEPS // 4


@pytest.mark.faults("Q3")
def test_a_query_sees_whole_outer_steps_while_another_process_commits(tmp_path: Path) -> None:
    sql = (
        "SELECT (SELECT count(*) FROM selections) AS selected, (SELECT max(outer_step) + 1 FROM "
        "rounds) AS steps, (SELECT sum(selected)::INT FROM rounds) AS told, "
        "(SELECT sum(times_used)::INT FROM used) AS used"
    )
    seen = []
    with written(tmp_path / "run") as process:
        while process.poll() is None:
            (row,) = query_run(Run.open(tmp_path / "run"), sql).to_pylist()
            assert row["selected"] == row["told"] == 7 * row["steps"]
            assert row["used"] == 14 * row["steps"]
            seen.append(row["steps"])
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
