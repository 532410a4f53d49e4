"""What would end a run hours later ends it before any work, with the limit's name."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tiny import make_config
from tiny_runs import TRAIN_TINY, assert_same_run

from cit_curate.curation import curate
from cit_curate.pool.pool import Pool
from cit_curate.storage import fail_points
from cit_curate.storage.fail_points import VARIABLE
from cit_train import outer_loop
from cit_train.loop import session
from cit_train.outer_loop import train
from cit_train.ranks.preflight import WANTED_FILES, has_shared_memory
from cit_train.streaming.batches import LaneBatch


def never(*_: object, **__: object) -> None:
    raise AssertionError("work has begun")


@pytest.mark.faults("L9")
def test_a_full_disk_is_told_before_a_model_is_loaded(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outer_loop, "open_session", never)
    monkeypatch.setattr(curate, "Curator", never)
    monkeypatch.setattr(fail_points, "_times", Counter())
    config, pool = make_config(world), Pool.open(world / "data" / "pool")
    inputs = (pool, config.metadata, config.text, config.curate, tmp_path / "curated")
    monkeypatch.setenv(VARIABLE, "other.start:1:enospc")
    with pytest.raises(OSError, match="No space left"):
        train(config, tmp_path / "run")
    monkeypatch.setattr(fail_points, "_times", Counter())
    with pytest.raises(OSError, match="No space left"):
        curate.curate(*inputs, num_pairs=8, device="cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("soft", "hard", "code"),
    [(64, 64, 5), pytest.param(64, WANTED_FILES, 0, marks=pytest.mark.slow)],
)
@pytest.mark.faults("S8")
@pytest.mark.slow
def test_too_few_open_files_are_raised_or_refused(
    world: Path, tmp_path: Path, soft: int, hard: int, code: int
) -> None:
    fields = json.dumps({"max_updates": 2, "eval_data": ""})
    command = [sys.executable, str(TRAIN_TINY), str(world), str(tmp_path / "run"), fields]
    limited = f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"'
    ended = subprocess.run(
        ["bash", "-c", limited, "bash", *command], capture_output=True, text=True, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert ("ulimit -n 1024" in ended.stderr) == (code == 5)
    assert (tmp_path / "run").exists() == (code == 0)


@pytest.mark.faults("S8")
def test_shared_memory_that_is_too_small_is_named(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(world, num_workers=2, keep_shards="all")
    assert has_shared_memory(config, side=32)
    assert not has_shared_memory(config, side=2_000_000)
    assert "--num-workers 2 need about" in caplog.text
    assert "--shm-size" in caplog.text
    assert has_shared_memory(make_config(world), side=2_000_000)
    assert has_shared_memory(config, side=2_000_000, folder=Path("/nowhere"))


@pytest.mark.faults("S8")
@pytest.mark.slow
def test_without_shared_memory_images_go_through_pipes_and_the_run_is_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(world, num_workers=1, keep_shards="all")
    train(config, tmp_path / "shared")
    piped: list[bool] = []
    unpacked = LaneBatch.unpacked

    def seen(self: LaneBatch) -> LaneBatch:
        piped.append(self.piped is not None and self.views is None)
        return unpacked(self)

    monkeypatch.setattr(LaneBatch, "unpacked", seen)
    monkeypatch.setattr(session, "has_shared_memory", lambda *_, **__: False)
    train(config, tmp_path / "piped")
    assert len(piped) == 6
    assert all(piped)
    assert_same_run(tmp_path / "shared", tmp_path / "piped")
