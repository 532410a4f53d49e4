import base64
import io
from pathlib import Path

import pytest
from PIL import Image
from run_fixtures import image_bytes, small_pool

from cit_curate.run.report.thumbnails import LARGEST_SIDE, pool_thumbnail, thumbnail


def opened(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("size", [(1000, 400), (400, 1000), (8, 6), (1, 1), (1, 2000)])
def test_a_thumbnail_keeps_the_shape_and_never_grows(size: tuple[int, int]) -> None:
    picture = opened(thumbnail(image_bytes(size=size)).uri)
    assert max(picture.size) == min(LARGEST_SIDE, max(size))


def test_transparency_becomes_white() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(stream, "PNG")
    assert opened(thumbnail(stream.getvalue()).uri).convert("RGB").getpixel((5, 5)) == (255,) * 3


@pytest.mark.faults("R2")
def test_a_missing_or_broken_image_has_a_reason_instead(tmp_path: Path) -> None:
    pool = small_pool(tmp_path / "pool")
    pool.images["memory:0.png"] = b"broken"
    assert pool_thumbnail(pool, "memory:0.png", "memory").missing == "format not allowed"
    assert pool_thumbnail(pool, "memory:99.png", "memory").missing == "missing image"
    assert pool_thumbnail(pool, "", "memory").missing == "no image"
    assert pool_thumbnail(None, "memory:0.png", "memory").missing == "no image"
    assert pool_thumbnail(pool, "memory:1.png", "memory").uri
