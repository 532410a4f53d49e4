"""Readers in this process, while another one commits: whole outer steps only."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_fixtures import query_run, small_run

from cit_curate.run.ledger import Run

NUM_READS = 1000
READS_PER_STEP = 25
_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from run_fixtures import scanned, write_step
from cit_curate.run.ledger import Run
run = Run.open(Path(sys.argv[1]))
while sys.stdin.buffer.read(1):
    step = len(run.commits())
    rows = [
        scanned(each, outer_step=step, similarity=0.9, entry=0, classes=["cat"])
        for each in range(7)
    ]
    write_step(run, step, selections=rows)
"""


@contextmanager
def written(path: Path) -> Iterator[Callable[[], None]]:
    """A run of 7 selected pairs in each outer step, and what lets another process write one more.

    That process lives until the block ends, when it has written all that were asked for.
    """
    num_steps = len(small_run(path).commits())
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), str(Path(__file__).parents[1])],
        stdin=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin is not None
    asked = process.stdin

    def write_one() -> None:
        nonlocal num_steps
        asked.write(b"1")
        num_steps += 1

    try:
        yield write_one
        assert process.poll() is None
        asked.close()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    assert len(Run.open(path).commits()) == num_steps


@pytest.mark.faults("L7")
@pytest.mark.slow
def test_a_reader_sees_whole_outer_steps_while_another_process_commits(tmp_path: Path) -> None:
    seen = []
    with written(tmp_path / "run") as write_one:
        while len(seen) < NUM_READS:
            if len(seen) % READS_PER_STEP == 0:
                write_one()
            run = Run.open(tmp_path / "run")
            if len(seen) % 2:
                steps = run.read("selections")["outer_step"].to_pylist()
                assert steps == sorted(steps)
                assert set(Counter(steps).values()) == {7}
                seen.append(len(steps) // 7)
            else:
                seen.append(len(run.commits()))
    assert len(seen) == NUM_READS
    assert seen == sorted(seen)
    assert len(set(seen)) > 15


@pytest.mark.faults("Q3")
@pytest.mark.slow
def test_a_query_sees_whole_outer_steps_while_another_process_commits(tmp_path: Path) -> None:
    sql = (
        "SELECT (SELECT count(*) FROM selections) AS selected, (SELECT max(outer_step) + 1 FROM "
        "rounds) AS steps, (SELECT sum(selected)::INT FROM rounds) AS told, "
        "(SELECT sum(times_used)::INT FROM used) AS used"
    )
    seen = []
    with written(tmp_path / "run") as write_one:
        while len(set(seen)) < 15:
            write_one()
            (row,) = query_run(Run.open(tmp_path / "run"), sql).to_pylist()
            assert row["selected"] == row["told"] == 7 * row["steps"]
            assert row["used"] == 14 * row["steps"]
            seen.append(row["steps"])
    assert seen == sorted(seen)
