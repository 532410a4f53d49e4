"""The cache of a frozen tower's features: whole, shared, bounded, and never stale."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import picture

from cit_curate.errors import DamagedError
from cit_train.inner_loop.features import FeatureCache
from cit_train.models.pooled_vision import CPU_ROWS, PooledVision
from cit_train.models.towers import load_vision_tower
from cit_train.streaming.views import ViewMaker, empty_views
from cit_train.transforms import Normalizer

IMAGES = [picture("red", "noise", number) for number in range(CPU_ROWS + 3)]
VIEWS = [number % 3 for number in range(len(IMAGES))]
MAKER = ViewMaker(side=32, max_pixels=10**6)


@pytest.fixture(scope="module")
def vision(world: Path) -> PooledVision:
    tower = load_vision_tower(str(world / "vision"))
    return PooledVision(tower, Normalizer((0.5,) * 3, (0.5,) * 3), torch.device("cpu"))


def opened(folder: Path, vision: PooledVision, **changes: Any) -> FeatureCache:
    settings = {"views": MAKER, "fingerprint": "f" * 64, "num_views": 3}
    return FeatureCache(folder, vision, **(settings | changes))


def test_a_cached_feature_is_that_of_the_crop_and_comes_back_from_disk(
    vision: PooledVision, tmp_path: Path
) -> None:
    cache = opened(tmp_path, vision)
    first = cache.features(IMAGES, VIEWS)
    assert first.dtype == torch.float32
    assert cache.num_computed == len(IMAGES)  # no crop that was not asked for
    cache.flush()
    assert torch.equal(cache.features(IMAGES, VIEWS), first)
    again = opened(tmp_path, vision)
    assert again.knows(IMAGES[0])
    assert torch.equal(again.features(IMAGES[::-1], VIEWS[::-1]).flip(0), first)
    assert again.num_computed == 0
    alone = opened(tmp_path / "other", vision).features(IMAGES[4:5], [1])
    assert torch.equal(alone[0], first[4])


def test_each_crop_of_an_image_has_its_own_feature(vision: PooledVision, tmp_path: Path) -> None:
    cache = opened(tmp_path, vision)
    features = cache.features([IMAGES[0]] * 4, [2, 0, 2, 1])
    assert cache.num_computed == 3
    assert torch.equal(features[0], features[2])
    assert not torch.equal(features[0], features[1])


def test_another_tower_or_other_crops_have_a_folder_of_their_own(
    vision: PooledVision, tmp_path: Path
) -> None:
    cache = opened(tmp_path, vision)
    cache.features(IMAGES[:1], [0])
    cache.flush()
    fast = ViewMaker(side=32, max_pixels=10**6, fast=True)
    for changes in ({"fingerprint": "e" * 64}, {"views": fast}):
        assert not opened(tmp_path, vision, **changes).knows(IMAGES[0])
    assert opened(tmp_path, vision, num_views=8).knows(IMAGES[0])  # the first crops are the same


def test_the_oldest_features_leave_a_folder_that_is_full(
    vision: PooledVision, tmp_path: Path
) -> None:
    other = opened(tmp_path, vision, fingerprint="e" * 64)  # of another tower
    other.features(IMAGES[:4], [0] * 4)
    other.flush()
    size = sum(path.stat().st_size for path in tmp_path.rglob("part-*"))
    cache = opened(tmp_path, vision, max_bytes=2 * size)
    firsts = {}
    for number in range(3):
        part = IMAGES[number * 3 : number * 3 + 3]
        firsts[number] = cache.features(part, [number] * 3)
        cache.flush()
        for path in tmp_path.rglob("part-*"):  # a clock of the disk may not tell them apart
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
        assert sum(path.stat().st_size for path in tmp_path.rglob("part-*")) <= 2 * size
    assert not list(tmp_path.glob("e*/part-*"))
    computed = cache.num_computed
    assert torch.equal(cache.features(IMAGES[6:9], [2] * 3), firsts[2])
    assert cache.num_computed == computed
    # What has gone is computed again, to the same values, and the image is still known.
    assert cache.knows(IMAGES[0])
    assert torch.equal(cache.features(IMAGES[:3], [0] * 3), firsts[0])
    assert cache.num_computed == computed + 3


def test_a_bound_below_one_part_keeps_nothing_on_disk(vision: PooledVision, tmp_path: Path) -> None:
    cache = opened(tmp_path, vision, max_bytes=1)
    first = cache.features(IMAGES, VIEWS)
    cache.flush()
    assert not list(tmp_path.rglob("part-*"))
    assert torch.equal(cache.features(IMAGES, VIEWS), first)


def test_features_wait_in_memory_for_a_part_alone(
    vision: PooledVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cit_train.inner_loop.features.PART_BYTES", 1)
    cache = opened(tmp_path, vision)
    first = cache.features(IMAGES, VIEWS)
    assert len(list(tmp_path.rglob("part-*.keys.npy"))) == 1
    assert torch.equal(cache.features(IMAGES, VIEWS), first)


@pytest.mark.parametrize("place", [-1, 0])
def test_a_damaged_part_is_named(vision: PooledVision, tmp_path: Path, place: int) -> None:
    cache = opened(tmp_path, vision)
    cache.features(IMAGES, VIEWS)
    cache.flush()
    (values,) = (path for path in tmp_path.rglob("part-*") if ".keys" not in path.name)
    content = bytearray(values.read_bytes())
    content[place] ^= 255
    values.write_bytes(content)
    with pytest.raises(DamagedError, match="remove"):
        opened(tmp_path, vision)


def test_a_part_that_another_run_removed_is_not_missed(
    vision: PooledVision, tmp_path: Path
) -> None:
    cache = opened(tmp_path, vision)
    cache.features(IMAGES, VIEWS)
    cache.flush()
    (values,) = (path for path in tmp_path.rglob("part-*") if ".keys" not in path.name)
    values.unlink()
    assert not opened(tmp_path, vision).knows(IMAGES[0])


def test_a_feature_is_rounded_to_half_precision(vision: PooledVision, tmp_path: Path) -> None:
    crop = empty_views(1, 32)
    cached = opened(tmp_path, vision).features(IMAGES[:1], [0])
    assert torch.equal(cached, cached.half().float())
    from cit_train.inner_loop.features import VIEW_KEY, image_key

    seed = int.from_bytes(image_key(IMAGES[0])[:8], "little")
    MAKER(IMAGES[0], [np.random.default_rng((VIEW_KEY, seed, 0))], crop)
    assert torch.equal(cached, vision(crop).half().float())
