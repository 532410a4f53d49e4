"""The bytes of an image in a shard: its own, or those of a smaller JPEG."""

from io import BytesIO

from PIL import Image

from cit_curate.images.pictures import MAX_PIXELS, OpenedImage, check_image

# The quality of new JPEGs: PIL's tables, chroma at half resolution, no metadata.
JPEG_QUALITY = 90
# The longest side that libjpeg can write.
_MAX_JPEG_SIDE = 65_500
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
    width, height = opened.size
    shorter = min(width, height)
    size = (max(round(width * side / shorter), 1), max(round(height * side / shorter), 1))
    if shorter <= side or max(size) > _MAX_JPEG_SIDE:
        opened.check()
        return data
    reduction = next((part for part in (8, 4, 2) if shorter >= part * _MARGIN * side), 1)
    image = opened.read(reduction=reduction).resize(size, Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, exif=b"", icc_profile=None)
    return buffer.getvalue()
