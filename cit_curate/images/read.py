"""The bytes of an image below an image root, and what its readers need to decode them."""

from cit_curate.images.archives import read_archived_bytes
from cit_curate.images.pictures import (
    MAX_PIXELS,
    ImageSuffix,
    OpenedImage,
    check_image,
    image_suffix,
    read_image,
)
from cit_curate.images.rejected import ImageRejected, Reason
from cit_curate.images.root import ImageRoot, RemoteFolder, opened_below, whole_file
from cit_curate.images.uri import parse_image_uri

__all__ = [
    "MAX_IMAGE_BYTES",
    "MAX_PIXELS",
    "ImageRejected",
    "ImageSuffix",
    "OpenedImage",
    "Reason",
    "check_image",
    "image_suffix",
    "read_image",
    "read_image_bytes",
]

MAX_IMAGE_BYTES = 64 * 1024 * 1024


def read_image_bytes(root: ImageRoot, image_uri: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes of an image that lies inside `root` even after links are followed.

    Args:
        root: The source's image root, a folder or a folder's URL.
        image_uri: A path, or the URI of an image in an archive (`cit_curate.images.uri`).
        max_bytes: The largest image that is accepted.

    Raises:
        ImageRejected: The image is missing, not a plain file, outside the root, a web address,
            damaged or too large.
    """
    if not image_uri:
        raise ImageRejected("no_image", "the pair has no image")
    if "://" in image_uri:
        if image_uri.startswith(("http://", "https://")):
            raise ImageRejected("no_image", f"{image_uri} is on the web; that is never fetched")
        try:
            archived = parse_image_uri(image_uri)
        except ValueError as error:
            raise ImageRejected("missing_image", str(error)) from error
        if archived is not None:
            return read_archived_bytes(root, archived, max_bytes=max_bytes)
    if isinstance(root, RemoteFolder):
        return whole_file(root, image_uri, max_bytes)
    with opened_below(root, image_uri) as file:
        # One byte more than the size: the file may be growing.
        data = file.read(0, file.num_bytes + 1) if file.num_bytes <= max_bytes else b""
        if file.num_bytes > max_bytes or len(data) > max_bytes:
            raise ImageRejected(
                "too_many_bytes",
                f"{file.path} has {file.num_bytes:,} bytes, more than {max_bytes:,}",
            )
    return data
