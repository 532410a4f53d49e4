"""Real tiny trainings as submitit jobs: interrupted and timed out = never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

from cit_curate.run.ledger import Run
from cit_curate.run.ledger_tables import LEDGER_TABLES


def flags(world: Path, **changes: object) -> list[str]:
    fields = {
        "pool": world / "data" / "pool",
        "metadata": world / "classes.txt",
        "text_encoder": world / "text",
        "vision_encoder": world / "vision",
        "threshold": 0.5,
        "min_ratio": 0.25,
        "batch_size": 8,
        "curate_every": 2,
        "max_passes": 3,
        "pairs_per_shard": 8,
        "projection_dim": 16,
        "eval_data": world / "pictures",
        "eval_every": 3,
        "device": "cpu",
        "max_updates": 6,
        **changes,
    }
    return [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]


def launch(*args: str, **settings: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "cit_train.cli", "launch", "slurm", "default", *args]
    return subprocess.Popen(
        [*command, "--local", "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ledger(path: Path) -> dict[str, bytes]:
    run = Run.open(path)
    return {
        str(file.relative_to(path)): file.read_bytes()
        for table in LEDGER_TABLES
        for file in run.files(table)
    }


def wait_for_commit(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not list((path / "manifests").glob("step=000001.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.faults("D6")
@pytest.mark.slow
def test_a_preempted_training_goes_on_and_has_the_ledger_of_one_never_stopped(
    world: Path, tmp_path: Path
) -> None:
    updates = {"max_updates": 24}
    command = ("train", "default", *flags(world, **updates), "--out", tmp_path / "straight")
    straight = forked.run("cit_train.cli:main", *command)
    assert straight.returncode == 0, straight.stderr

    # submitit's local launcher passes TERM on, which its ranks here take for a preemption.
    run = tmp_path / "preempted"
    settings = {"SUBMITIT_PREEMPT_SIGNAL": "TERM"}
    preempted = launch(*flags(world, **updates), "--out", str(run), **settings)
    wait_for_commit(run)
    told = json.loads((tmp_path / "preempted.jobs" / "launch.json").read_text())
    os.kill(int(told["jobs"][0]["job_id"]), signal.SIGTERM)  # as submitit's `job._interrupt()`
    out, err = preempted.communicate(timeout=100)
    assert preempted.returncode == 0, err
    assert json.loads(out)["jobs"][0]["code"] == 0
    (log,) = (tmp_path / "preempted.jobs").glob("*_0_log.out")
    assert "Requeued job" in log.read_text()
    assert ledger(run) == ledger(tmp_path / "straight")


@pytest.mark.faults("D6")
@pytest.mark.slow
def test_a_stopped_launcher_stops_its_training_which_the_same_command_goes_on_with(
    world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = [*flags(world, max_updates=400), "--out", str(run)]
    first = launch(*args)
    wait_for_commit(run)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 75, err
    assert "run the same command again to resume" in err
    stopped_at = Run.open(run).commits()[-1].update
    assert 0 < stopped_at < 400
    time.sleep(1)
    assert Run.open(run).commits()[-1].update == stopped_at  # nobody trains on
