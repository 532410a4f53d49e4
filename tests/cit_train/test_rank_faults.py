"""A rank that fails, falls silent or is slow is named, and nothing of the run is left running."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ranks import alive, finish, start, wait_until_gone

from cit_train.status import read_status

pytestmark = pytest.mark.slow
FIELDS = {"lanes": 2, "batch_size": 4, "peer_seconds": 5, "eval_data": ""}


@pytest.mark.parametrize("act", ["raise", "SIGKILL", "SIGSTOP"])
def test_the_rank_that_is_lost_is_named(world: Path, tmp_path: Path, act: str) -> None:
    # FAULTS: D2
    out = tmp_path / "run"
    fault = {"rank": 1, "moment": "train", "update": 3, "act": act}
    process = start(2, world, out, FIELDS, [fault])
    if act == "SIGSTOP":
        # torchrun waits for the stopped one until it is killed; rank 0 must have ended before.
        limit = time.monotonic() + 60
        while read_status(out) is None:
            assert time.monotonic() < limit, "rank 0 did not give the silent rank up"
            time.sleep(0.2)
        for pid in alive(out):
            os.kill(pid, signal.SIGCONT)
    code, said = finish(process)
    assert code == 1
    status = read_status(out)
    assert status is not None, said
    assert (status["rank"], status["outer_step"], status["step"]) == (1, 1, 3), status
    assert status["code"] == (1 if act == "raise" else 6), status
    wait_until_gone(out, seconds=15)
    code, said = finish(start(2, world, out, FIELDS))
    assert code == 0, said


def test_a_slow_rank_is_named_with_what_it_does(world: Path, tmp_path: Path) -> None:
    # FAULTS: D2
    out = tmp_path / "run"
    fields = {**FIELDS, "barrier_seconds": 3}
    fault = {"rank": 1, "moment": "curate", "update": 2, "act": "sleep20"}
    finish(start(2, world, out, fields, [fault]))
    status = read_status(out)
    assert status is not None
    assert (status["code"], status["rank"]) == (6, 0)
    assert "waited 3 s for all ranks to have curated: rank 1 is curating" in status["message"]
    wait_until_gone(out, seconds=25)


def test_ranks_with_other_settings_are_refused(world: Path, tmp_path: Path) -> None:
    # FAULTS: D7
    out = tmp_path / "run"
    fault = {"rank": 1, "moment": "settings", "update": 0, "act": "lr"}
    code, said = finish(start(2, world, out, FIELDS, [fault]))
    assert code == 1
    assert "rank 0 and rank 1 differ in their settings: lr: 0.001 and 0.002" in said
    assert not (out / "config.json").exists()


def test_a_loss_that_is_not_finite_ends_all_ranks_and_leaves_its_keys(
    world: Path, tmp_path: Path
) -> None:
    # FAULTS: D3
    out = tmp_path / "run"
    fault = {"rank": 1, "moment": "nan", "update": 3, "act": "nan"}
    code, said = finish(start(2, world, out, {**FIELDS, "local_loss": True}, [fault]))
    assert code == 1
    status = read_status(out)
    assert status is not None, said
    assert (status["code"], status["reason"]) == (7, "not_finite")
    kept = sorted((out / "not_finite").glob("*.json"))
    assert [path.name[-10:] for path in kept] == ["00000.json", "00001.json"]
    assert len(json.loads(kept[1].read_text())) == 4


def cit_train(world: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    """`cit train … --nproc 2` as a user starts it: more updates than anybody waits for."""
    text, vision = str(world / "text"), str(world / "vision")
    towers = ["--text-encoder", text, "--vision-encoder", vision, "--projection-dim", "16"]
    data = ["--pool", str(world / "data" / "pool"), "--metadata", str(world / "classes.txt")]
    rules = ["--threshold", "0.5", "--min-ratio", "0.25", "--batch-size", "4", "--lanes", "2"]
    steps = ["--curate-every", "2", "--max-updates", "4000", "--device", "cpu"]
    command = [sys.executable, "-m", "cit_train.cli", "train", "default", *data, *towers, *rules]
    command += [*steps, "--out", str(out), "--nproc", "2", *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_the_launcher_stops_all_ranks_and_its_code_says_so(
    world: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    # FAULTS: D4 D5
    out = tmp_path / "run"
    process = cit_train(world, out)
    wait_for(out / "manifests" / "step=000001.json", process)
    process.send_signal(sign)
    code, said = finish(process)
    assert code == 75, said
    assert "Traceback" not in said
    assert said.count("go on with the same command and --resume") == 1, said
    assert read_status(out)["code"] == 75  # type: ignore[index]
    wait_until_gone(out, seconds=5)


@pytest.mark.parametrize("how", ["twice", "killed"])
def test_no_rank_outlives_its_launcher(world: Path, tmp_path: Path, how: str) -> None:
    # FAULTS: G4c S6
    out = tmp_path / "run"
    process = cit_train(world, out)
    wait_for(out / "manifests" / "step=000000.json", process)
    if how == "killed":
        process.kill()
        process.communicate()
    else:
        process.send_signal(signal.SIGINT)
        time.sleep(0.8)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        code, said = finish(process)
        assert code in (75, 130), said  # the first may have been done by then
    wait_until_gone(out, seconds=20)


def test_ranks_that_do_not_divide_the_lanes_are_refused(world: Path, tmp_path: Path) -> None:
    out: Any = tmp_path / "run"
    code, said = finish(cit_train(world, out, "--lanes", "3"))
    assert code == 2
    assert "--nproc 2 does not divide the 3 lanes" in said
