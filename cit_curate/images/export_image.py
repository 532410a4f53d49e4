"""The bytes of an image in an exported shard: in a format that other readers know."""

import warnings
from io import BytesIO

import numpy as np
from PIL import Image

from cit_curate.config import ImageFormat
from cit_curate.images.pictures import MAX_PIXELS, OpenedImage, any_format
from cit_curate.images.rejected import ImageRejected
from cit_curate.images.shard_image import MAX_JPEG_SIDE, as_jpeg, smaller

# What open_clip looks for in a sample, and every version of webdataset decodes.
READABLE = ("jpg", "png", "webp")
_MAX_SIDES = {"jpg": MAX_JPEG_SIDE, "webp": 16_383}


def export_image(
    data: bytes, *, side: int = 0, format: ImageFormat = "auto", max_pixels: int = MAX_PIXELS
) -> bytes:
    """The bytes of an image as exported, checked to decode.

    Where the image need not change, it keeps its bytes. A new PNG or WebP is upright and loses
    nothing of the first frame: neither colours, transparency nor the depth that the format has. A
    new JPEG, and a smaller picture, is made as by `shard_image`.

    Args:
        data: The bytes of an image file; also TIFF and AVIF, which training does not read.
        side: The limit of the shorter side, as in `shard_image`; 0 = none.
        format: `auto`: JPEG, PNG and WebP stay what they are, a smaller picture is a JPEG, and all
            else is a PNG; any other: the format of every image.
        max_pixels: The most pixels (width times height).

    Raises:
        ImageRejected: The image does not decode, or is too long for the format.
    """
    with warnings.catch_warnings():
        # Pillow warns of a cut TIFF before it raises.
        warnings.simplefilter("ignore")
        return _exported(data, side, format, max_pixels)


def _exported(data: bytes, side: int, format: ImageFormat, max_pixels: int) -> bytes:
    original = any_format(data)
    opened = OpenedImage(data, max_pixels=max_pixels, any_format_is_allowed=True)
    small = smaller(opened, side) if side else None
    if format != "auto":
        wanted: str = format
    elif small is not None:
        wanted = "jpg"
    else:
        wanted = original if original in READABLE else "png"
    if small is None and wanted == original:
        opened.check()
        return data
    if small is not None:
        picture = small
    else:
        picture = opened.read() if wanted == "jpg" else opened.read_all()
    limit = _MAX_SIDES.get(wanted)
    if limit is not None and max(picture.size) > limit:
        raise ImageRejected(
            "too_many_pixels",
            f"its longer side has {max(picture.size):,} pixels, a {wanted} at most {limit:,}",
        )
    if wanted == "jpg":
        return as_jpeg(picture)
    return _as_png(picture) if wanted == "png" else _as_webp(picture)


def _as_png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _as_webp(picture: Image.Image) -> bytes:
    """A WebP without loss; 16 bits become 8, since it has no more."""
    if picture.mode == "I;16":
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    buffer = BytesIO()
    # `exact` keeps the colours of transparent pixels.
    picture.save(buffer, "WEBP", lossless=True, exact=True, exif=b"")
    return buffer.getvalue()
