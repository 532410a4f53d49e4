"""Images on their way into shards: opened in threads, in the training order all the same."""

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny import make_config, make_pool
from tiny_runs import assert_same_run, ledger_hashes

from cit_curate.images.decoders import Decoders
from cit_curate.images.read import image_suffix, read_image
from cit_curate.pool.pool import Pool
from cit_curate.run.exports.export import export_webdataset
from cit_curate.run.shards import read_shard, shard_entry
from cit_train.config import replace_fields
from cit_train.loop import updates
from cit_train.outer_loop import train
from cit_train.streaming import image_opener


def shard_bytes(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "shards").rglob("*.tar"))}


def shard_images(folder: Path) -> dict[str, bytes]:
    paths = sorted(folder.rglob("*.tar"))
    shards = (read_shard(path.parent, shard_entry(path)) for path in paths)
    return {sample.pair_key: sample.image for shard in shards for sample in shard}


@pytest.mark.slow
def test_threads_that_overtake_each_other_change_no_byte(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(world, max_updates=4, eval_data="", keep_shards="all")
    with monkeypatch.context() as patch:
        patch.setattr(updates, "image_threads", lambda: ThreadPoolExecutor(1))
        one = train(config, tmp_path / "one")
    delays = random.Random(0)

    class Slow(Decoders):
        def shard_image(self, data: bytes, *, side: int = 0, max_pixels: int = 0) -> bytes:
            time.sleep(delays.random() / 100)
            return super().shard_image(data, side=side, max_pixels=max_pixels)

    slow = Slow()
    monkeypatch.setattr(image_opener, "decoders", lambda: slow)
    monkeypatch.setattr(updates, "image_threads", lambda: ThreadPoolExecutor(6))
    several = train(config, tmp_path / "several")
    slow.close()
    assert one.read("rejects").num_rows  # pairs were replaced
    assert_same_run(one.path, several.path)
    assert shard_bytes(one.path)
    assert shard_bytes(one.path) == shard_bytes(several.path)


@pytest.mark.faults("I9")
@pytest.mark.slow
def test_a_run_goes_on_without_the_images_that_hang_or_crash_their_decoder(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(world, pool=str(make_pool(tmp_path / "data", num_images=24)))
    config = replace_fields(config, eval_data="", max_updates=1, curate_every=1, batch_size=22)
    config = replace_fields(config, threshold=-1.0)  # 22 pairs, and only two that can be left out
    for number, way in ((3, b"hang"), (17, b"abort")):
        with (tmp_path / "data" / "images" / f"{number:04d}.png").open("ab") as image:
            image.write(way)
    failing = Path(__file__).parents[2] / "cit_curate" / "failing_decoder.py"
    decoders = Decoders(limit_seconds=2, command=[sys.executable, str(failing)])
    monkeypatch.setattr(image_opener, "decoders", lambda: decoders)
    run = train(config, tmp_path / "run")
    decoders.close()
    rejects = run.read("rejects").sort_by("pair_key").to_pylist()
    assert [(row["pair_key"][:4], row["reason"], row["detail"]) for row in rejects] == [
        ("0003", "decoder_failed", "it was not decoded in 2 s"),
        ("0017", "decoder_failed", "its decoder crashed (SIGABRT)"),
    ]
    assert run.read("used").num_rows == 22


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
