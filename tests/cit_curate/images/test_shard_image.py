"""Images are written to shards as they are, or smaller."""

import io

import numpy as np
import pytest
from PIL import Image

from cit_curate.images.read import ImageRejected, image_suffix, read_image
from cit_curate.images.shard_image import shard_image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


@pytest.mark.parametrize("side", [0, 90, 200])
def test_an_image_that_is_small_enough_keeps_its_bytes(side: int) -> None:
    for kind in ("JPEG", "PNG"):
        content = encoded(gradient(120, 90), kind)
        assert shard_image(content, side=side) == content


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGBA")])
def test_a_larger_image_becomes_the_same_jpeg_at_every_time(kind: str, mode: str) -> None:
    content = encoded(gradient(600, 400).convert(mode), kind)
    small = shard_image(content, side=64)
    assert image_suffix(small) == "jpg"
    assert shard_image(content, side=64) == small
    picture = read_image(small)
    assert picture.size == (96, 64)
    expected = read_image(content).resize((96, 64), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(expected)).mean() < 3


def test_a_smaller_image_is_upright_and_on_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_image(shard_image(encoded(gradient(400, 200), "JPEG", exif=exif), side=50))
    assert turned.size == (50, 100)
    assert not turned.getexif()
    clear = Image.new("RGBA", (300, 300), (255, 0, 0, 0))
    assert read_image(shard_image(encoded(clear, "PNG"), side=100)).getpixel((5, 5)) == (255,) * 3


def test_a_strip_that_no_jpeg_can_hold_keeps_its_bytes() -> None:
    content = encoded(Image.new("RGB", (90_000, 12)), "PNG")
    assert shard_image(content, side=11) == content


@pytest.mark.faults("I1")
@pytest.mark.parametrize("side", [0, 16, 1000])
def test_a_cut_image_is_rejected(side: int) -> None:
    whole = encoded(gradient(200, 100), "JPEG")
    cut = whole[: len(whole) // 2] + b"\xff\xd9"
    for content in (whole[:-40], encoded(gradient(200, 100), "PNG")[:-40]):
        with pytest.raises(ImageRejected):
            shard_image(content, side=side)
    try:  # with an end behind the cut, the decoder decides: the same for every side
        read_image(cut)
    except ImageRejected:
        with pytest.raises(ImageRejected):
            shard_image(cut, side=side)
