"""Shards that are slow, lost, damaged or not written, and processes of theirs that are killed."""

import errno
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import train_with
from tiny import make_config
from tiny_runs import (
    assert_same_run,
    finish,
    processes_of,
    start_training,
    status,
    told_by,
    wait_for,
)

from cit_curate.errors import DamagedError, PeerLostError
from cit_curate.run.shards import ShardWriter, read_shard, shard_entry
from cit_train.inner_loop.trainer import Trainer
from cit_train.outer_loop import train
from cit_train.streaming import disk_room, waiting

pytestmark = pytest.mark.slow

# 2 outer steps of 3 updates; evaluated in the middle of the first and of the second one.
FIELDS: dict[str, Any] = {"curate_every": 3, "eval_every": 2}


# One outer step of 12 updates, each of a shard; no worker has read the ninth at the first.
ONE_STEP: dict[str, Any] = {"curate_every": 12, "max_updates": 12, "eval_data": ""}


@pytest.fixture(scope="module")
def one_step(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one outer step that nobody stopped."""
    out = tmp_path_factory.mktemp("one_step") / "run"
    train(make_config(world, **ONE_STEP), out)
    return out


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(world, **FIELDS), out)
    return out


@pytest.mark.faults("S4")
@pytest.mark.parametrize(
    ("on_shortfall", "num_workers"), [("error", 0), ("train", 0), ("error", 1)]
)
def test_training_waits_for_slow_shards_up_to_a_limit(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    on_shortfall: str,
    num_workers: int,
) -> None:
    monkeypatch.setattr(waiting, "WARN_AFTER_SECONDS", 0.1)
    fields = {**FIELDS, "on_shortfall": on_shortfall}
    config = make_config(world, **fields, stream_seconds=0.3, num_workers=num_workers)
    out = tmp_path / "run"
    fault = {"moment": "stream", "update": 3, "act": "sleep2"}
    with pytest.raises(PeerLostError, match="raise --stream-seconds") as caught:
        train_with(monkeypatch, config, out, fault)
    assert "Traceback" not in str(caught.value)
    if not num_workers:  # a worker tells in its own process
        assert "training waits for" in caplog.text
    assert (status(out)["code"], status(out)["reason"]) == (6, "peer_lost")
    train(make_config(world, **fields), out, resume=True)
    train(make_config(world, **fields), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


def remove_tar(shards: Path) -> None:
    (shards / "lane00000-000008.tar").unlink()


def remove_entry(shards: Path) -> None:
    (shards / "lane00000-000008.json").unlink()


def remove_shard(shards: Path) -> None:
    remove_tar(shards)
    remove_entry(shards)


def flip_tar(shards: Path) -> None:
    path = shards / "lane00000-000008.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


@pytest.mark.faults("S1", "S3")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("damage", "num_workers"),
    [
        (remove_tar, 0),
        (remove_entry, 0),
        (remove_shard, 0),
        (flip_tar, 0),
        (shutil.rmtree, 0),
        (remove_shard, 1),
    ],
)
def test_a_shard_that_is_lost_while_it_is_read_ends_the_run_with_4_and_is_written_again(
    world: Path,
    one_step: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    num_workers: int,
) -> None:
    config, out = make_config(world, **ONE_STEP, num_workers=num_workers), tmp_path / "run"
    shards = out / "shards" / "step=000000"
    step = Trainer.step

    def stepped(self: Trainer, batches: Any, state: Any) -> Any:
        if state.update == 1:
            while not (shards / "lane00000.json").exists():
                time.sleep(0.01)
            damage(shards)
        return step(self, batches, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stepped)
        with pytest.raises(DamagedError, match=r"lane00000-000008|step=000000") as caught:
            train(config, out)
    assert caught.value.exit_code == 4
    assert "Traceback" not in str(caught.value)
    left = status(out)
    assert (left["code"], left["outer_step"]) == (4, 0)
    assert left["step"] >= 2
    train(config, out, resume=True)
    assert_same_run(one_step, out)


@pytest.mark.faults("S5", "S7")
def test_shards_that_cannot_be_written_end_the_run_and_say_why(
    world: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    with pytest.raises(OSError, match="No space left"):
        train_with(monkeypatch, config, out, {"moment": "stream", "update": 3, "act": "full"})
    assert (status(out)["code"], status(out)["resumable"]) == (5, True)
    train(config, out, resume=True)
    assert_same_run(whole, out)


@pytest.mark.faults("S7")
def test_on_a_full_disk_shards_that_were_trained_on_go_first(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"curate_every": 2, "eval_data": "", "keep_shards": "2"}
    config, out = make_config(world, **fields), tmp_path / "run"
    left_then: list[list[str]] = []
    write = ShardWriter._write_shard

    def written(self: ShardWriter) -> None:
        if self.folder.name == "step=000002":
            left_then.append(sorted(path.name for path in self.folder.parent.glob("step=*")))
            if len(left_then[-1]) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        write(self)

    monkeypatch.setattr(ShardWriter, "_write_shard", written)
    train(config, out)
    assert left_then[0] == ["step=000000", "step=000001", "step=000002"]
    assert left_then[1:] == [["step=000001", "step=000002"]] * (len(left_then) - 1)
    assert "the disk is full: removing" in caplog.text
    monkeypatch.undo()
    train(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.faults("S7")
def test_on_a_full_disk_training_goes_on_until_there_is_room_again(
    world: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trained: list[int] = []
    refused: list[str] = []
    write, step = ShardWriter._write_shard, Trainer.step

    def written(self: ShardWriter) -> None:
        # Full until the first shard of this outer step, an update's, is trained on; the writer
        # may come to its second shard later than that, so it is full at least once.
        full = 3 not in trained or not refused
        if self.folder.name == "step=000001" and self.entries and full:
            refused.append(self.folder.name)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self)

    def stepped(self: Trainer, batches: Any, state: Any) -> Any:
        found = step(self, batches, state)
        trained.append(state.update)
        return found

    monkeypatch.setattr(disk_room, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(ShardWriter, "_write_shard", written)
    monkeypatch.setattr(Trainer, "step", stepped)
    train(make_config(world, **FIELDS), tmp_path / "run")
    assert "the disk is full: waiting 60 s for room" in caplog.text
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.faults("S7")
def test_a_disk_that_stays_full_ends_the_run_with_5_after_a_wait(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    tries: list[str] = []

    def written(self: ShardWriter) -> None:
        tries.append(self.folder.name)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk_room, "WAIT_SECONDS", 0.3)
        patch.setattr(disk_room, "POLL_SECONDS", 0.05)
        patch.setattr(ShardWriter, "_write_shard", written)
        with pytest.raises(OSError, match="No space left"):
            train(config, out)
    assert len(tries) > 2
    assert (status(out)["code"], status(out)["resumable"]) == (5, True)
    train(config, out, resume=True)
    assert_same_run(whole, out)


def told_of_resources(world: Path, out: Path, fault: dict[str, object]) -> str:
    """What a run tells that a fault ends for want of something, and that can be resumed."""
    process = start_training(world, out, faults=[fault], **FIELDS)
    told = finish(process), told_by(out).read_text()
    assert told[0] == 5, told[1]
    left = status(out)
    assert (left["code"], left["reason"], left["resumable"]) == (5, "resource", True)
    return told[1]


@pytest.mark.faults("S7")
def test_a_shard_that_may_not_grow_ends_the_run_which_goes_on_once_there_is_room(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # The smallest tar has 10,240 bytes; the system itself refuses to write that many.
    told = told_of_resources(world, out, {"moment": "stream", "update": 3, "act": "limit9000"})
    assert "File too large" in told
    assert "free some space or raise the limit" in told
    assert not list((out / "shards" / "step=000001").glob("*.tar"))
    train(make_config(world, **FIELDS), out, resume=True)
    assert_same_run(whole, out)


@pytest.mark.faults("S5")
def test_when_a_process_of_the_shards_is_killed_training_makes_its_updates_saves_and_ends(
    world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # 16 images are opened ahead of the pair that is written: the 30th needs a new process.
    fault = {"moment": "stream", "update": 0, "pair": 13, "act": "decoder"}
    fields = {**FIELDS, "curate_every": 6}
    process = start_training(world, out, faults=[fault], **fields)
    assert finish(process) == 6
    assert "a process that opens images ended with code -9" in told_by(out).read_text()
    left = status(out)
    assert (left["code"], left["reason"], left["resumable"]) == (6, "peer_lost", True)
    # What was in closed shards was trained on, and is saved.
    assert left["outer_step"] == 0
    assert 1 <= left["step"] <= 3
    wait_for(lambda: not processes_of(out), seconds=5)
    train(make_config(world, **fields), out, resume=True)
    train(make_config(world, **fields), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.faults("S9")
@pytest.mark.parametrize("update", [0, 4])
def test_a_killed_loader_worker_is_named_with_its_last_pair_and_the_run_goes_on(
    world: Path, whole: Path, tmp_path: Path, update: int
) -> None:
    out = tmp_path / "run"
    fields = {**FIELDS, "num_workers": 2, "keep_shards": "all"}
    fault = {"moment": "train", "update": update, "act": "loader sleep3"}
    process = start_training(world, out, faults=[fault], **fields)
    assert finish(process) == 5, told_by(out).read_text()
    left = status(out)
    assert (left["code"], left["reason"], left["resumable"]) == (5, "resource", True)
    assert left["message"] in told_by(out).read_text()
    told = re.match(
        r"loader worker 1 was killed by SIGKILL after its batch that ends with pair (\S+);",
        left["message"],
    )
    assert told is not None, left["message"]
    # Of batches 0, 1, 2, … worker 1 makes the odd ones; batch n is for the update after n.
    batch = {0: None, 4: 3}[update]
    pairs = trained_pairs(whole)
    assert told[1] == ("(none)" if batch is None else pairs[8 * batch + 7])
    train(make_config(world, **fields), out, resume=True)
    assert_same_run(whole, out)


def trained_pairs(run: Path) -> list[str]:
    """The keys of all pairs in the order they were trained on, from the shards."""
    return [
        sample.pair_key
        for path in sorted((run / "shards").rglob("*.tar"))
        for sample in read_shard(path.parent, shard_entry(path))
    ]
