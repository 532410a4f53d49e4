"""Images on their way into shards: opened in threads, in the training order all the same."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny import make_config
from tiny_runs import assert_same_run, ledger_hashes

from cit_curate.export import export_webdataset
from cit_curate.pool import Pool
from cit_curate.pool.images import image_suffix, read_image
from cit_curate.shards import read_shard, shard_entry
from cit_train import step_batches, stream
from cit_train.outer_loop import train


def shard_bytes(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "shards").rglob("*.tar"))}


def shard_images(folder: Path) -> dict[str, bytes]:
    paths = sorted(folder.rglob("*.tar"))
    shards = (read_shard(path.parent, shard_entry(path)) for path in paths)
    return {sample.pair_key: sample.image for shard in shards for sample in shard}


def test_threads_that_overtake_each_other_change_no_byte(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(world, max_updates=4, eval_data="", keep_shards="all")
    with monkeypatch.context() as patch:
        patch.setattr(step_batches, "image_threads", lambda: ThreadPoolExecutor(1))
        one = train(config, tmp_path / "one")
    make = stream.shard_image
    delays = random.Random(0)

    def slow(data: bytes, *, side: int, max_pixels: int) -> bytes:
        time.sleep(delays.random() / 100)
        return make(data, side=side, max_pixels=max_pixels)

    monkeypatch.setattr(stream, "shard_image", slow)
    monkeypatch.setattr(step_batches, "image_threads", lambda: ThreadPoolExecutor(6))
    several = train(config, tmp_path / "several")
    assert one.read("rejects").num_rows  # pairs were replaced
    assert_same_run(one.path, several.path)
    assert shard_bytes(one.path)
    assert shard_bytes(one.path) == shard_bytes(several.path)


def test_smaller_shards_are_made_again_byte_for_byte_on_export(world: Path, tmp_path: Path) -> None:
    fields = {"max_updates": 2, "eval_data": "", "keep_shards": "all"}
    plain = train(make_config(world, **fields), tmp_path / "plain")
    small = train(make_config(world, **fields, shard_image_side=20), tmp_path / "small")
    assert small.config["shard_image_side"] == 20
    names = ("selections", "rejects")
    one, other = ledger_hashes(plain.path), ledger_hashes(small.path)
    assert {n: h for n, h in one.items() if n.startswith(names)} == {
        n: h for n, h in other.items() if n.startswith(names)
    }
    trained = shard_images(small.path / "shards")
    assert {image_suffix(image) for image in trained.values()} == {"jpg"}
    assert {read_image(image).size for image in trained.values()} == {(24, 20)}
    pool = Pool.open(world / "data" / "pool")
    export_webdataset(small, pool, tmp_path / "again")
    assert shard_images(tmp_path / "again") == trained
    export_webdataset(small, pool, tmp_path / "whole", image_side=0)
    whole = shard_images(tmp_path / "whole")
    assert whole == shard_images(plain.path / "shards")
    assert {image_suffix(image) for image in whole.values()} == {"png"}
