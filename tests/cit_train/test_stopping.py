"""Asked to stop at any moment, a run saves where it is and goes on as if never stopped."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from same_runs import assert_same_run
from tiny import make_config, make_moco_tower

from cit_curate.curation import Curator
from cit_curate.ledger import Run
from cit_train import commit, mid_step
from cit_train.config import RunConfig
from cit_train.evaluation.evaluator import Evaluator
from cit_train.outer_loop import train
from cit_train.status import read_status
from cit_train.stopping import StoppedError, StopSignals
from cit_train.stream import ShardStream
from cit_train.trainer import Trainer


def stop_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    """Send this process a TERM within the `calls`-th call of a function."""
    original, seen = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        seen.append(True)
        if len(seen) == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs that nobody stopped, each made once."""
    made: dict[str, Path] = {}

    def run(**fields: Any) -> Path:
        key = json.dumps(fields, sort_keys=True)
        if key not in made:
            made[key] = train(
                make_config(world, **fields), tmp_path_factory.mktemp("whole") / "run"
            ).path
        return made[key]

    return run


MOMENTS = {
    "curate": (Curator, "scan", 2),
    "stream": (ShardStream, "_add", 20),
    "train": (Trainer, "step", 4),
    "save": (commit, "save_checkpoint", 2),
    "evaluate": (Evaluator, "__call__", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_anywhere_and_resumed_it_is_the_run_that_was_not(
    world: Path,
    whole: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    # FAULTS: D4 K3
    config, out = make_config(world), tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop_once(patch, *MOMENTS[moment])
        with pytest.raises(StoppedError, match=r"stopped by SIGTERM; .* and --resume") as caught:
            train(config, out)
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == before
    status = read_status(out)
    assert status is not None
    assert (status["code"], status["reason"], status["resumable"]) == (75, "stopped", True)
    assert f"update {status['step']} of outer step {status['outer_step']}" in status["message"]
    run = train(config, out, resume=True)
    assert_same_run(whole(), out)
    assert read_status(out)["code"] == 0  # type: ignore[index]
    lines = [(m["kind"], m["update"]) for m in run.metrics() if m["kind"] in ("train", "eval")]
    assert sorted(lines) == [("eval", 3), ("eval", 6), *(("train", n) for n in range(1, 7))]
    assert not (out / "mid_step.json").exists()
    assert not (out / "mid_step").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"on_shortfall": "train", "accumulate": 2, "max_passes": 6},
        {"curation": "none"},
        {"collection": "multiset", "lanes": 2, "batch_size": 4},
        {"precision": "float16", "vision_features": "cached", "pairs_per_shard": 3},
        {"max_sample": 60, "curate_every": 3},
    ],
    ids=["accumulate", "none", "multiset", "float16", "subset"],
)
def test_a_run_goes_on_from_the_middle_of_an_outer_step(
    world: Path,
    whole: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    # FAULTS: K3 K7
    config, out = make_config(world, **fields), tmp_path / "run"
    every = fields.get("curate_every", 2)
    with monkeypatch.context() as patch:
        stop_once(patch, Trainer, "step", every + 1)  # the first update of the second outer step
        with pytest.raises(StoppedError):
            train(config, out)
    place = json.loads((out / "mid_step.json").read_text())
    assert (place["outer_step"], place["update"]) == (1, every + 1)
    curated: list[int] = []
    run = Curator.run

    def counted(self: Curator, *args: Any, **kwargs: Any) -> Any:
        curated.append(kwargs["outer_step"])
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Curator, "run", counted)
    shards = {p: p.stat().st_mtime_ns for p in (out / "shards/step=000001").glob("*.tar")}
    train(config, out, resume=True)
    assert 1 not in curated, "the selection was saved, so it must not be made again"
    assert shards
    for path, written in shards.items():
        assert path.stat().st_mtime_ns == written, "a closed shard must not be written again"
    assert_same_run(whole(**fields), out)


def saved_within(world: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run that was killed in an outer step, after it had saved within it."""
    config = make_config(world, save_every=1)
    step = Trainer.step

    def stepped(self: Trainer, batches: Any, state: Any) -> Any:
        if state.update == 3:
            raise RuntimeError("killed")
        return step(self, batches, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stepped)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, out)
    return config


def test_a_killed_run_goes_on_from_what_was_saved_within_the_step(
    world: Path, whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FAULTS: K1 K3
    out = tmp_path / "run"
    config = saved_within(world, out, monkeypatch)
    assert json.loads((out / "mid_step.json").read_text())["update"] == 3
    assert read_status(out)["code"] == 1  # type: ignore[index]
    updates: list[int] = []
    step = Trainer.step

    def stepped(self: Trainer, batches: Any, state: Any) -> Any:
        updates.append(state.update)
        return step(self, batches, state)

    monkeypatch.setattr(Trainer, "step", stepped)
    train(config, out, resume=True)
    assert updates == [3, 4, 5]
    assert_same_run(whole(), out)
    kept = sorted(path.name for path in (out / "checkpoints").glob("update-*"))
    best = (out / "checkpoints" / "best").resolve().name
    assert kept == sorted({"update-000004", "update-000006", best})


@pytest.mark.parametrize("damaged", ["mid_step.json", "model", "selection"])
def test_what_is_damaged_within_a_step_is_left_for_the_last_commit(
    world: Path,
    whole: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damaged: str,
) -> None:
    # FAULTS: K2
    out = tmp_path / "run"
    config = saved_within(world, out, monkeypatch)
    place = json.loads((out / "mid_step.json").read_text())
    path = {
        "mid_step.json": out / "mid_step.json",
        "model": out / place["checkpoint"] / "model.safetensors",
        "selection": next((out / "mid_step").rglob("*-selected.parquet")),
    }[damaged]
    path.write_bytes(path.read_bytes()[:-7])
    train(config, out, resume=True)
    assert "taking the last commit" in caplog.text
    assert_same_run(whole(), out)


def test_a_damaged_shard_is_written_again(
    world: Path, whole: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FAULTS: S3
    out = tmp_path / "run"
    config = saved_within(world, out, monkeypatch)
    first, *_ = sorted((out / "shards" / "step=000001").glob("*.tar"))
    data = bytearray(first.read_bytes())
    data[600] ^= 1
    first.write_bytes(data)
    train(config, out, resume=True)
    assert_same_run(whole(), out)


def test_a_finished_run_stays_finished_whatever_is_tried_on_it(
    world: Path, whole: Callable[..., Path]
) -> None:
    # FAULTS: K8
    path = whole()
    before = (path / "status.json").read_bytes()
    with pytest.raises(Exception, match="not empty"):
        train(make_config(world), path)
    with pytest.raises(Exception, match="was started with other settings"):
        train(make_config(world, lr=0.5), path, resume=True)
    assert (path / "status.json").read_bytes() == before
    assert mid_step.read_mid_step(Run.open(path)) is None


def test_a_second_signal_ends_at_once_and_an_echo_of_the_first_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # FAULTS: G4c D4
    now = [0.0]
    monkeypatch.setattr("cit_train.stopping.time.monotonic", lambda: now[0])
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        now[0] = 0.1  # a launcher passes on what the terminal has sent already
        os.kill(os.getpid(), signal.SIGTERM)
        now[0] = 2.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGHUP)
        assert caught.value.code == 128 + signal.SIGHUP
        with pytest.raises(StoppedError), stop.interrupting():
            raise AssertionError("what waits must not begin")


def test_a_head_with_running_statistics_goes_on_exactly(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FAULTS: K3
    tower = make_moco_tower(tmp_path / "tower")
    config = make_config(world, vision_encoder=str(tower), lanes=2, batch_size=4)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_once(patch, Trainer, "step", 3)
        with pytest.raises(StoppedError):
            train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
