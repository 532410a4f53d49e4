"""The bytes of an image in a shard: its own, or those of a smaller JPEG."""

from io import BytesIO

from PIL import Image

from cit_curate.images.pictures import MAX_PIXELS, OpenedImage, check_image

# The quality of new JPEGs: PIL's tables, chroma at half resolution, no metadata.
JPEG_QUALITY = 90
# The longest side that libjpeg can write.
MAX_JPEG_SIDE = 65_500
# A JPEG is decoded at a reduced scale, but no smaller than this many times the target side.
_MARGIN = 2


def shard_image(data: bytes, *, side: int = 0, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image as stored in a shard, checked to decode.

    A picture whose shorter side exceeds `side` becomes a JPEG with that shorter side: on white,
    upright, RGB. Any other keeps its bytes. The result depends only on the arguments and on the
    versions of Pillow and libjpeg.

    Args:
        data: The bytes of an image file.
        side: The limit of the shorter side, in pixels; 0 = none.
        max_pixels: The most pixels (width times height).

    Raises:
        ImageRejected: The image does not decode.
    """
    if not side:
        check_image(data, max_pixels=max_pixels)
        return data
    opened = OpenedImage(data, max_pixels=max_pixels)
    image = smaller(opened, side)
    if image is None:
        opened.check()
        return data
    return as_jpeg(image)


def smaller(opened: OpenedImage, side: int) -> Image.Image | None:
    """The picture with the shorter side `side`: on white, upright, RGB.

    Returns:
        None if it has no more than that, or would be too long for a JPEG.

    Raises:
        ImageRejected: The image does not decode.
    """
    width, height = opened.size
    shorter = min(width, height)
    size = (max(round(width * side / shorter), 1), max(round(height * side / shorter), 1))
    if shorter <= side or max(size) > MAX_JPEG_SIDE:
        return None
    reduction = next((part for part in (8, 4, 2) if shorter >= part * _MARGIN * side), 1)
    return opened.read(reduction=reduction).resize(size, Image.Resampling.LANCZOS)


def as_jpeg(image: Image.Image) -> bytes:
    """An RGB picture as a JPEG, without metadata."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, exif=b"", icc_profile=None)
    return buffer.getvalue()
