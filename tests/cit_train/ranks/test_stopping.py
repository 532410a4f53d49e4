"""Stopped by a signal anywhere and taken up again, a run is the one that was never stopped."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from faults import train_with
from tiny import make_config, make_pool
from tiny_runs import (
    assert_same_run,
    finish,
    processes_of,
    start_training,
    status,
    told_by,
    wait_for,
)

from cit_curate.curation.curator import Curator
from cit_curate.errors import ConfigError, PeerLostError
from cit_curate.run.ledger import Run
from cit_train.outer_loop import train
from cit_train.ranks.stopping import SAME_REQUEST_SECONDS, SIGNALS, StoppedError, StopSignals

# 2 outer steps of 3 updates; evaluated in the middle of the first and of the second one.
FIELDS: dict[str, Any] = {"curate_every": 3, "eval_every": 2}


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the run of these fields (JSON) that nobody stopped."""

    @cache
    def run(fields: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / "run"
        train(make_config(world, **FIELDS, **json.loads(fields)), out)
        return out

    return run


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two pools with some broken images, and their shares."""
    folder = tmp_path_factory.mktemp("pools")
    for name, num_images in (("shapes", 72), ("more", 24)):
        make_pool(folder / name, num_images=num_images, broken=tuple(range(0, num_images, 5)))
    return [f"shapes:{folder}/shapes/pool=0.75", f"more:{folder}/more/pool=0.25"]


@pytest.mark.faults("K3", "D4", "G4c")
@pytest.mark.parametrize(
    ("moment", "update"),
    [
        ("train", 2),
        *(
            pytest.param(*moment, marks=pytest.mark.slow)
            for moment in (("curate", 0), ("curate", 3), ("stream", 0), ("train", 1), ("save", 3))
        ),
    ],
)
def test_stopped_at_any_moment_and_resumed_it_is_the_run_that_was_never_stopped(
    world: Path,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    update: int,
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    fault = {"moment": moment, "update": update, "act": "SIGTERM"}
    with pytest.raises(StoppedError, match="--resume") as caught:
        train_with(monkeypatch, config, out, fault)
    assert caught.value.exit_code == 75
    left = status(out)
    commits, place = Run.open(out).commits(), out / "mid_step.json"
    saved = json.loads(place.read_text())["update"] if place.exists() else 0
    assert left == {
        "code": 75,
        "reason": "stopped",
        "outer_step": len(commits),
        "step": saved or (commits[-1].update if commits else 0),
        "rank": 0,
        "resumable": True,
        "message": str(caught.value),
    }
    assert update <= left["step"] <= update + 1
    train(config, out, resume=True)
    assert_same_run(whole("{}"), out)
    assert status(out)["reason"] == "finished"
    assert not (out / "mid_step.json").exists()
    assert not (out / "mid_step").exists()


@pytest.mark.faults("D4", "K3")
@pytest.mark.slow
def test_a_stop_during_an_evaluation_makes_it_later_and_may_come_twice(
    world: Path, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    for name in ("SIGUSR1", "SIGHUP"):
        with pytest.raises(StoppedError, match=f"stopped by {name}"):
            train_with(monkeypatch, config, out, {"moment": "evaluate", "act": name})
        assert (status(out)["outer_step"], status(out)["step"]) == (0, 2)
    train(config, out, resume=True)
    assert_same_run(whole("{}"), out)


@pytest.mark.faults("S5")
@pytest.mark.slow
def test_when_a_process_that_opens_pictures_is_killed_the_evaluation_is_made_later(
    world: Path, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    with pytest.raises(PeerLostError, match="code -9"):
        train_with(monkeypatch, config, out, {"moment": "evaluate", "act": "decoder"})
    left = status(out)
    assert (left["code"], left["outer_step"], left["step"]) == (6, 0, 2)
    train(config, out, resume=True)
    assert_same_run(whole("{}"), out)


@pytest.mark.faults("K3")
@pytest.mark.parametrize(
    "fields",
    [
        {"lanes": 2, "batch_size": 4, "pairs_per_shard": 5},
        {"vision_features": "cached", "cached_views": 2},
        {"accumulate": 2, "batch_size": 4},
        {"keep_ratio": 0.3, "balance": 1.2, "anchor": 0.5, "mix_random": 0.2},
        {"curation": "none"},
        {"collection": "multiset", "max_passes": 9},
        {"on_shortfall": "train", "max_passes": 1, "threshold": 0.99, "curate_every": 50},
    ],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.slow
def test_stopped_twice_in_an_outer_step_nothing_changes_whatever_the_settings(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    config, out = make_config(world, **{**FIELDS, **fields}), tmp_path / "run"
    for update in (0, 1):
        fault = {"moment": "train", "update": update, "act": "SIGTERM"}
        with pytest.raises(StoppedError):
            train_with(monkeypatch, config, out, fault)
        assert status(out)["step"] == update + 1
    train(config, out, resume=True)
    train(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)
    rejects = Run.open(out).read("rejects")
    assert len(rejects), "images must be rejected and replaced for this to mean something"


@pytest.mark.slow
def test_stopped_with_two_pools_each_pair_is_found_again_where_it_lies(
    world: Path, pools: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make_config(world, **FIELDS, pool=pools), tmp_path / "run"
    fault = {"moment": "train", "update": 4, "act": "SIGUSR2"}
    with pytest.raises(StoppedError):
        train_with(monkeypatch, config, out, fault)
    train(config, out, resume=True)
    train(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)
    assert set(Run.open(out).read("rejects")["pool"].to_pylist()) == {"shapes", "more"}


@pytest.mark.faults("K1", "K3")
@pytest.mark.slow
def test_with_save_every_a_run_that_broke_goes_on_from_within_its_outer_step(
    world: Path, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make_config(world, **FIELDS, save_every=1), tmp_path / "run"
    with pytest.raises(RuntimeError, match="planted"):
        train_with(monkeypatch, config, out, {"moment": "train", "update": 5, "act": "raise"})
    assert status(out) | {"message": ""} == {
        "code": 1,
        "reason": "bug",
        "outer_step": 1,
        "step": 5,
        "rank": 0,
        "resumable": False,
        "message": "",
    }
    assert json.loads((out / "mid_step.json").read_text())["update"] == 5
    closed = {path: path.stat().st_mtime_ns for path in out.rglob("shards/*/*.tar")}
    assert closed
    curated = []
    run = Curator.run

    def told(self: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        curated.append(step.update)
        return run(self, step, *args, **kwargs)

    monkeypatch.setattr(Curator, "run", told)
    train(config, out, resume=True)
    assert curated == []
    assert {path: path.stat().st_mtime_ns for path in closed} == closed
    assert_same_run(whole("{}"), out)


@pytest.mark.faults("G4c")
@pytest.mark.slow
def test_a_second_interrupt_ends_at_once_and_the_run_still_goes_on(
    world: Path, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    fault = {"moment": "train", "update": 4, "act": "SIGINT sleep0.6 SIGINT sleep1"}
    with pytest.raises(KeyboardInterrupt):
        train_with(monkeypatch, config, out, fault)
    left = status(out)
    assert (left["code"], left["reason"], left["resumable"]) == (130, "interrupted", True)
    train(config, out, resume=True)
    assert_same_run(whole("{}"), out)


@pytest.mark.faults("K2")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoints/update-000002/model.safetensors", b"cut"),
        ("checkpoints/update-000002/manifest.json", b"{"),
        ("mid_step/step=000000/lane=00000-selected.parquet", b""),
        ("mid_step/step=000000/lane=00000.json", None),
        ("mid_step.json", b"[1]"),
        ("mid_step.json", b'{"outer_step": 0, "upd'),
        ("mid_step.json", b'{"outer_step": 0, "files": [7]}'),
    ],
)
@pytest.mark.slow
def test_a_damaged_middle_is_told_of_and_the_run_goes_on_from_its_last_commit(
    world: Path,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    content: bytes | None,
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    with pytest.raises(StoppedError):
        train_with(monkeypatch, config, out, {"moment": "train", "update": 1, "act": "SIGTERM"})
    if content is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(content)
    train(config, out, resume=True)
    assert "cannot resume from" in caplog.text
    assert "resuming from the last commit" in caplog.text
    assert_same_run(whole("{}"), out)


def test_a_finished_run_stays_finished_when_a_later_try_is_refused(
    world: Path, whole: Callable[[str], Path]
) -> None:
    out = whole("{}")
    before = status(out)
    assert (before["code"], before["outer_step"], before["step"]) == (0, 2, 6)
    with pytest.raises(ConfigError, match="threshold") as caught:
        train(make_config(world, **FIELDS, threshold=0.6), out, resume=True)
    assert caught.value.exit_code == 2
    assert status(out) == before


@pytest.mark.faults("K1", "S7")
@pytest.mark.slow
def test_a_full_disk_while_saving_is_told_and_the_run_goes_on_once_there_is_room(
    world: Path, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    with pytest.raises(OSError, match="No space left"):
        train_with(monkeypatch, config, out, {"moment": "save", "update": 3, "act": "full"})
    assert (status(out)["code"], status(out)["reason"]) == (5, "resource")
    assert status(out)["resumable"]
    train(config, out, resume=True)
    assert_same_run(whole("{}"), out)


@pytest.mark.faults("K4")
@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers_from_within_an_outer_step(
    world: Path, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for num_workers, update in ((0, 1), (2, 4)):
        config = make_config(world, **FIELDS, num_workers=num_workers, keep_shards="all")
        with pytest.raises(StoppedError):
            train_with(
                monkeypatch, config, out, {"moment": "train", "update": update, "act": "SIGTERM"}
            )
        assert status(out)["step"] == update + 1
    train(make_config(world, **FIELDS), out, resume=True)
    assert_same_run(whole("{}"), out)


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_that_asks_is_heard_once_and_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
        os.kill(os.getpid(), number)  # the same request, passed on by somebody else
        with pytest.raises(StoppedError, match=number.name), stop.interrupting():
            raise AssertionError("it was asked to stop before")
    assert signal.getsignal(number) == before


@pytest.mark.slow
def test_a_relayed_request_keeps_the_name_of_the_signal_that_asked() -> None:
    with StopSignals() as stop:
        stop.relayed = "SIGUSR2"  # what another rank heard
        os.kill(os.getpid(), signal.SIGTERM)  # and woke this one with
        assert stop.requested == "SIGUSR2"
        time.sleep(2 * SAME_REQUEST_SECONDS)
        os.kill(os.getpid(), signal.SIGUSR2)  # it comes to this rank, too: no second request
        assert stop.requested == "SIGUSR2"


def test_waiting_is_interrupted_and_writing_is_not() -> None:
    with StopSignals() as stop:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(StoppedError), stop.interrupting():
            time.sleep(5)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.requested == "SIGTERM"


@pytest.mark.faults("S9", "G4c")
@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_leaves_the_workers_to_their_trainer(
    world: Path, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    # A terminal and torchrun send signals to a process group.
    out = tmp_path / "run"
    # Time enough to notice that workers died, had they heard it, too.
    fault = {"moment": "train", "update": 1, "act": "groupSIGINT sleep1"}
    process = start_training(world, out, faults=[fault], num_workers=1, **FIELDS)
    assert finish(process) == 75, told_by(out).read_text()
    assert "Traceback" not in told_by(out).read_text()
    train(make_config(world, **FIELDS), out, resume=True)
    assert_same_run(whole("{}"), out)


@pytest.mark.faults("S6")
@pytest.mark.slow
def test_workers_end_when_their_trainer_is_killed(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fault = {"moment": "curate", "update": 3, "act": "sleep60"}
    process = start_training(world, out, faults=[fault], num_workers=1, **FIELDS)
    # The second outer step is being curated, so the workers wait for its shards.
    wait_for(lambda: list(out.glob("manifests/*")), seconds=60)
    children = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rsplit(")", 1)[1].split()[1] == str(process.pid)
    ]
    assert len(children) > 1
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), seconds=15)
    wait_for(lambda: not processes_of(out), seconds=5)
