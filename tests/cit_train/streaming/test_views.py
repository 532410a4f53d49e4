"""Training views, the plain way and the fast one."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import picture

from cit_curate.errors import DamagedError
from cit_train.streaming.views import ViewMaker, empty_views
from cit_train.transforms import train_view


def smooth(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def views_of(maker: ViewMaker, content: bytes, seeds: tuple[int, ...] = (0, 1)) -> torch.Tensor:
    out = empty_views(len(seeds), maker.side)
    maker(content, [np.random.default_rng(seed) for seed in seeds], out)
    return out


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_view_is_that_of_the_whole_picture(kind: str) -> None:
    image = smooth(300, 200)
    content = encoded(image, kind)
    maker = ViewMaker(side=32, max_pixels=10**6)
    views = views_of(maker, content)
    whole = Image.open(io.BytesIO(content))
    for seed, view in enumerate(views):
        assert torch.equal(view, train_view(whole, np.random.default_rng(seed), side=32))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(300, 200), (1000, 700), (40, 40)])
def test_a_fast_view_is_nearly_the_plain_one(size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth(*size), "JPEG", quality=95, exif=exif)
    plain = views_of(ViewMaker(side=64, max_pixels=10**6), content)
    fast = views_of(ViewMaker(side=64, max_pixels=10**6, fast=True), content)
    # A box is rounded to the pixels of the reduced picture: it may move by one of them.
    assert (plain.int() - fast.int()).abs().float().mean() < 4


def test_views_of_other_settings_have_another_name() -> None:
    plain = ViewMaker(side=32, max_pixels=10**6)
    others = [
        ViewMaker(side=33, max_pixels=10**6),
        ViewMaker(side=32, max_pixels=10**5),
        ViewMaker(side=32, max_pixels=10**6, fast=True),
    ]
    assert len({maker.name for maker in (plain, *others)}) == 4


@pytest.mark.parametrize("fast", [False, True])
def test_an_image_that_no_longer_decodes_is_damage(fast: bool) -> None:
    maker = ViewMaker(side=32, max_pixels=10**6, fast=fast)
    with pytest.raises(DamagedError, match="no longer decodes"):
        views_of(maker, picture("red", "disc", 0)[:200])


def test_empty_views_are_channels_last() -> None:
    assert empty_views(2, 8).is_contiguous(memory_format=torch.channels_last)
