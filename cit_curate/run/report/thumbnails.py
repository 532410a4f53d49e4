"""Small pictures inside the page, as data URIs."""

import base64
import io
from dataclasses import dataclass

from cit_curate.images.decoders import decoders
from cit_curate.images.read import ImageRejected, read_image
from cit_curate.run.query import ImageSource

LARGEST_SIDE = 128
QUALITY = 74


@dataclass(frozen=True)
class Thumbnail:
    """The data URI of a picture, or the reason why it is missing; one of the two is empty."""

    uri: str
    missing: str = ""


def thumbnail(data: bytes) -> Thumbnail:
    """A WebP of at most `LARGEST_SIDE` pixels a side; transparency becomes white.

    Raises:
        ImageRejected: The bytes are not an image of a known format.
    """
    # The image may be opened here for the first time, so it is decoded in the guarded process.
    image = read_image(decoders().shard_image(data, side=2 * LARGEST_SIDE))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY)
    return Thumbnail(f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}")


def pool_thumbnail(pool: ImageSource | None, image_uri: str, source: str) -> Thumbnail:
    """The thumbnail of a pool's image, or the reason why it is missing, in a word or two."""
    if pool is None or not image_uri:
        return Thumbnail("", "no image")
    try:
        return thumbnail(pool.image_bytes(image_uri, source))
    except ImageRejected as error:
        return Thumbnail("", error.reason.replace("_", " "))
