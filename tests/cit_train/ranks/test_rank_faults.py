"""What happens to the other ranks, and to the launcher, when one rank does not do as it should."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import make_config, make_pool
from tiny_runs import (
    assert_same_run,
    finish,
    finish_ranks,
    logged_updates,
    processes_of,
    start,
    start_fresh,
    start_ranks,
    status,
    told_by,
    wait_for,
)

from cit_curate.run.ledger import Run
from cit_train.config import flat
from cit_train.recipes import default

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FIELDS: dict[str, Any] = {
    "lanes": 2,
    "batch_size": 4,
    "curate_every": 3,
    "eval_every": 3,
    "peer_seconds": 4,
}
# Long enough to be found in its middle, if it is not stopped.
LONG: dict[str, Any] = {**FIELDS, "max_updates": 300, "peer_seconds": 30}


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run; nothing of it may go on after the test."""
    folder = tmp_path / "run"
    yield folder
    # A decoder ends once its rank has.
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not processes_of(folder), seconds=10)
    left = processes_of(folder)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, told_by(folder).read_text()


@pytest.mark.faults("D2")
@pytest.mark.parametrize("moment", ["curate", "train"])
def test_an_error_on_one_rank_ends_the_others_and_is_told_once(
    world: Path, out: Path, moment: str
) -> None:
    fault = {"rank": 1, "moment": moment, "update": 3, "act": "raise"}
    started = time.monotonic()
    assert finish_ranks(start_ranks(world, out, ranks=2, faults=[fault], **FIELDS)) == [6, 1]
    assert time.monotonic() - started < 30
    left = status(out)
    assert (left["code"], left["reason"], left["rank"]) == (1, "bug", 1)
    assert (left["outer_step"], left["step"], left["resumable"]) == (1, 3, False)
    assert left["message"] == "planted"
    assert told_by(out).read_text().count("error: ") == 1


@pytest.mark.faults("S5")
def test_when_the_shards_of_one_rank_are_lost_all_ranks_save_the_same_update(
    world: Path, out: Path, tmp_path: Path
) -> None:
    fields = {**FIELDS, "curate_every": 12, "max_updates": 12}
    fault = {"rank": 1, "moment": "stream", "update": 0, "pair": 13, "act": "decoder"}
    assert finish_ranks(start_ranks(world, out, ranks=2, faults=[fault], **fields)) == [6, 6]
    left = status(out)
    assert (left["code"], left["reason"], left["rank"]) == (6, "peer_lost", 1)
    assert left["message"].startswith("a process that opens images ended with code -9")
    assert (left["outer_step"], left["resumable"]) == (0, True)
    assert 1 <= left["step"] <= 7
    assert told_by(out).read_text().count("error: ") == 1
    assert finish_ranks(start_ranks(world, out, ranks=2, **fields)) == [0, 0]
    whole = tmp_path / "whole"
    assert finish_ranks(start_ranks(world, whole, ranks=2, **fields)) == [0, 0]
    assert_same_run(whole, out)


@pytest.mark.faults("D2")
@pytest.mark.parametrize(("moment", "rank"), [("curate", 1), ("train", 1), ("train", 0)])
def test_a_rank_that_stands_still_is_named_and_ended_with_the_others(
    world: Path, out: Path, moment: str, rank: int
) -> None:
    fault = {"rank": rank, "moment": moment, "update": 3, "act": "SIGSTOP"}
    ranks = start_ranks(world, out, ranks=2, faults=[fault], **FIELDS)
    first, left = ranks[1 - rank].wait(40), status(out)
    os.kill(ranks[rank].pid, signal.SIGCONT)
    codes = finish_ranks(ranks)
    assert first == 6
    assert codes == [6, 6], told_by(out).read_text()
    assert status(out) == left
    assert (left["code"], left["reason"], left["resumable"]) == (6, "peer_lost", True)
    assert left["rank"] == rank
    if rank == 1:  # with rank 0 the store stands still, which a launcher has for torchrun
        assert (left["outer_step"], left["step"]) == (1, 3)
        assert "it no longer responds" in left["message"]
    else:
        assert "the launcher or rank 0 no longer responds" in left["message"]
    assert finish_ranks(start_ranks(world, out, ranks=2, **FIELDS)) == [0, 0]


@pytest.mark.faults("D2")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_by_the_one_that_is_left(world: Path, out: Path, rank: int) -> None:
    fault = {"rank": rank, "moment": "train", "update": 4, "act": "SIGKILL"}
    codes = finish_ranks(start_ranks(world, out, ranks=2, faults=[fault], **FIELDS))
    assert codes == ([6, -9] if rank else [-9, 6])
    left = status(out)
    assert (left["code"], left["rank"], left["outer_step"], left["step"]) == (6, rank, 1, 4)
    told = "rank 1 failed at outer step 1, update 4" if rank else "the launcher or rank 0 is gone"
    assert told in told_by(out).read_text()


@pytest.mark.faults("D3", "E1")
def test_captions_without_a_vector_on_one_rank_end_all_and_leave_their_keys(
    world: Path, out: Path
) -> None:
    fault = {"rank": 1, "moment": "curate", "update": 3, "act": "not_finite"}
    assert finish_ranks(start_ranks(world, out, ranks=2, faults=[fault], **FIELDS)) == [7, 7]
    left = status(out)
    assert (left["code"], left["reason"], left["outer_step"]) == (7, "not_finite", 1)
    assert "too many captions without a vector" in left["message"]
    (kept,) = (out / "not_finite").iterdir()
    assert kept.name == "update=000003-rank=00001.json"
    assert json.loads(kept.read_text()) == ["7_title"]


@pytest.mark.faults("D3")
@pytest.mark.parametrize(
    ("act", "local_loss"),
    [("nan", False), ("nan", True), ("nan_scale", False), ("nan_gradient", False)],
)
def test_a_loss_that_is_not_finite_on_one_rank_ends_all_with_the_keys_of_its_pairs(
    world: Path, out: Path, act: str, local_loss: bool
) -> None:
    fault = {"rank": 1, "moment": "train", "update": 4, "act": act}
    fields = {**FIELDS, "local_loss": local_loss}
    assert finish_ranks(start_ranks(world, out, ranks=2, faults=[fault], **fields)) == [7, 7]
    left = status(out)
    assert (left["code"], left["reason"], left["step"]) == (7, "not_finite", 4)
    kept = sorted((out / "not_finite").iterdir())
    assert [path.name for path in kept] == [
        f"update=000004-rank=0000{rank}.json" for rank in (0, 1)
    ]
    keys = [json.loads(path.read_text()) for path in kept]
    assert [len(each) for each in keys] == [4, 4]
    assert not set(keys[0]) & set(keys[1])
    # From the last commit, whose weights are well, it goes on.
    assert finish_ranks(start_ranks(world, out, ranks=2, **fields)) == [0, 0]


@pytest.mark.faults("D1")
def test_ranks_whose_lanes_have_unequal_numbers_of_images_make_equally_many_updates(
    world: Path, tmp_path: Path
) -> None:
    # The passes are over before all broken images are replaced, and lanes have more or fewer.
    broken = tuple(number for number in range(96) if number % (2 if number < 48 else 7) == 0)
    pool = make_pool(tmp_path / "data", broken=broken)
    fields = {
        **{**FIELDS, "lanes": 4, "batch_size": 2, "curate_every": 50, "max_updates": 30},
        **{"pool": str(pool), "on_shortfall": "train", "max_passes": 1},
        **{"threshold": -1.0, "eval_data": ""},
    }
    made = []
    for ranks in (1, 2, 4):
        out = tmp_path / f"of{ranks}"
        codes = finish_ranks(start_ranks(world, out, ranks=ranks, faults=[], **fields))
        assert codes == [0] * ranks, told_by(out).read_text()
        run = Run.open(out)
        rows = run.read("selections")["lane"].to_pylist()
        assert len({rows.count(lane) for lane in range(4)}) > 1
        made.append((logged_updates(out), [commit.update for commit in run.commits()]))
    assert made[0] == made[1] == made[2]


@pytest.mark.faults("D7")
def test_ranks_that_see_other_settings_are_refused_and_the_field_is_named(
    world: Path, out: Path
) -> None:
    other = {1: {"threshold": 0.6, "lanes": 3, "pool": "nowhere"}}
    assert finish_ranks(start_ranks(world, out, ranks=2, fields_of=other, **FIELDS)) == [2, 2]
    told = told_by(out).read_text()
    assert "rank 0 and rank 1 differ in their config: lanes: 2 and 3; pool: " in told
    assert told.count("error: ") == 1
    assert not out.exists()


@pytest.mark.faults("D7")
def test_ranks_that_see_another_state_of_the_pool_are_refused(
    world: Path, out: Path, tmp_path: Path
) -> None:
    # As on a cluster, where the same path may be another disk on another machine.
    for rank in (0, 1):
        make_pool(tmp_path / f"machine{rank}", num_images=24 + rank)
    folders = {rank: tmp_path / f"machine{rank}" for rank in (0, 1)}
    fields = {**FIELDS, "pool": "pool"}
    assert finish_ranks(start_ranks(world, out, ranks=2, folder_of=folders, **fields)) == [2, 2]
    told = told_by(out).read_text()
    assert "rank 0 and rank 1 differ in their settings: " in told
    assert "pool_fingerprint: " in told
    assert told.count("error: ") == 1
    assert not out.exists()


@pytest.mark.faults("K4")
def test_ranks_that_do_not_divide_the_lanes_are_refused(world: Path, out: Path) -> None:
    codes = finish_ranks(start_ranks(world, out, ranks=2, **{**FIELDS, "lanes": 3}))
    assert codes == [2, 2]
    assert "2 ranks do not divide the 3 lanes" in told_by(out).read_text()
    assert not out.exists()


def test_a_rank_that_curates_for_too_long_is_named_with_what_it_does(
    world: Path, out: Path
) -> None:
    fault = {"rank": 1, "moment": "curate", "update": 3, "act": "sleep30"}
    fields = {**FIELDS, "barrier_seconds": 3}
    assert finish_ranks(start_ranks(world, out, ranks=2, faults=[fault], **fields)) == [6, 6]
    left = status(out)
    assert (left["code"], left["reason"], left["resumable"]) == (6, "peer_lost", True)
    assert "rank 1 is curating lane 1" in left["message"] or (
        "rank 1 is curating (outer step 1" in left["message"]
    ), left
    assert "--barrier-seconds" in left["message"]


def test_ranks_that_do_not_come_are_waited_for_up_to_a_limit(world: Path, out: Path) -> None:
    ranks = start_ranks(world, out, ranks=2, absent=[1], **FIELDS)
    assert finish_ranks(ranks) == [6]
    assert "did not find each other within 4 s" in told_by(out).read_text()


@pytest.mark.faults("D4")
def test_a_signal_to_one_rank_below_torchrun_stops_all_and_leaves_nothing(
    world: Path, out: Path
) -> None:
    fault = {"rank": 1, "moment": "train", "update": 1, "act": "SIGUSR2"}
    process = start_fresh(world, out, ranks=2, faults=[fault], **FIELDS)
    finish(process)
    left = status(out)
    assert (left["code"], left["step"], left["outer_step"]) == (75, 2, 0)
    assert "stopped by SIGUSR2" in left["message"]
    assert finish_ranks(start_ranks(world, out, ranks=2, **FIELDS)) == [0, 0]
    assert Run.open(out).commits()[-1].update == 6


@pytest.mark.faults("D5", "S6")
def test_ranks_end_when_their_launcher_is_killed(world: Path, out: Path) -> None:
    process = start_command(world, out)
    wait_for(lambda: list(out.glob("manifests/*")), seconds=90)
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(out), seconds=15)
    assert (status(out)["code"], status(out)["resumable"]) == (6, True)
    told = told_by(out).read_text()
    assert "the launcher or rank 0 is gone" in told
    assert "frame #" not in told


def start_command(world: Path, out: Path, **fields: object) -> subprocess.Popen[bytes]:
    """`cit train default --nproc 2` with the fields of the tiny world as flags.

    A new Python: how it ends after signals is what these tests are about.
    """
    usual = flat(default())
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in flat(make_config(world, **LONG, **fields)).items()
        if value != usual[name]
    ]
    command = [sys.executable, "-m", "cit_train.cli", "train", "default", *flags]
    return start([*command, "--out", str(out), "--resume", "--nproc", "2"], out)


def commands_of(out: Path) -> list[int]:
    """The processes that have the run folder among their arguments: the launcher and its ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(out).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.faults("D4", "D5", "G4c")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_to_the_launcher_stops_all_ranks_and_leaves_nothing(
    world: Path, out: Path, name: str
) -> None:
    process = start_command(world, out)
    wait_for(lambda: list(out.glob("manifests/*")), seconds=90)
    process.send_signal(getattr(signal, name))
    assert finish(process, seconds=60) == 75, told_by(out).read_text()
    wait_for(lambda: not processes_of(out), seconds=10)
    left = status(out)
    assert (left["code"], left["reason"]) == (75, "stopped")
    assert f"stopped by {name}" in left["message"]
    told = told_by(out).read_text()
    assert "Traceback" not in told
    assert told.count("--resume") == 1, told


@pytest.mark.faults("G4c")
def test_a_second_interrupt_to_the_launcher_ends_all_at_once(world: Path, out: Path) -> None:
    process = start_command(world, out)
    wait_for(lambda: list(out.glob("manifests/*")), seconds=90)
    ranks = [pid for pid in commands_of(out) if pid != process.pid]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGSTOP)  # so that the first request cannot be met
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert finish(process, seconds=30) == 130, told_by(out).read_text()
    assert time.monotonic() - sent < 12
    wait_for(lambda: not processes_of(out), seconds=10)  # decoders end after their ranks


@pytest.mark.faults("D5")
def test_too_early_a_signal_to_the_launcher_is_no_old_status(world: Path, out: Path) -> None:
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "status.json").write_text('{"code": 5}')
    process = start_command(world, out)
    wait_for(lambda: len(commands_of(out)) == 3, seconds=60)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 128 + signal.SIGTERM
