"""Killed at random moments, again and again, a run loses nothing it told, and doubles nothing."""

import contextlib
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from jobs import JOBS, result_of, start_job

from cit_curate.run.ledger import Run

NUM_KILLS = 200


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.faults("L4", "L6", "K1", "K7")
def test_after_kills_at_random_all_that_was_told_is_there_once(world: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    began = time.monotonic()
    JOBS["long_training"](world, tmp_path / "whole")
    seconds = time.monotonic() - began
    whole = result_of(tmp_path / "whole")
    rng = random.Random(NUM_KILLS)
    kills, number = 0, 0
    while kills < NUM_KILLS:
        out = tmp_path / f"out-{number}"
        out.mkdir()
        (out / "told").touch()
        while True:
            process = start_job("long_training", world, out)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.0, min(seconds, 0.6)) if kills < NUM_KILLS else 60)
            process.kill()
            code = process.wait()
            told = [int(line) for line in (out / "told").read_text().splitlines()]
            assert told == sorted({*told}), "an outer step was committed twice"
            num_commits = len(Run.open(out / "run").commits()) if (out / "run").exists() else 0
            assert num_commits >= max(told, default=0), "a commit that was told is lost"
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        assert result_of(out) == whole
        assert not list(out.rglob(".tmp-*"))
        number += 1
