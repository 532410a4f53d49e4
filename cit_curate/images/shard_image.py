"""What of an image goes into a shard: its own bytes, or a smaller JPEG of the same picture."""

from io import BytesIO

from PIL import Image

from cit_curate.images.pictures import MAX_PIXELS, OpenedImage, check_image

# Of the JPEGs that are made; PIL's own tables, chroma at half resolution, no metadata.
JPEG_QUALITY = 90
# What libjpeg can write.
_MAX_JPEG_SIDE = 65_500
# A JPEG is decoded at a reduced scale down to so many times the side that is wanted.
_MARGIN = 2


def shard_image(data: bytes, *, side: int = 0, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes that stand in a shard for an image, once it is certain that they decode.

    A picture whose shorter side is longer than `side` becomes a JPEG with that shorter side: on
    white, upright, RGB. Anything else keeps its bytes. The result is a function of the arguments
    and of the versions of Pillow and libjpeg.

    Args:
        data: An image file's bytes.
        side: Longest shorter side in pixels; 0 = any.
        max_pixels: Width times height allowed.

    Raises:
        ImageRejected: It does not decode, with the reason.
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
    stream = BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY, exif=b"", icc_profile=None)
    return stream.getvalue()
