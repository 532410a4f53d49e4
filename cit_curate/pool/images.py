"""Images: bytes from inside an image root, and a defined RGB picture from untrusted bytes."""

import os
import stat
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cit_curate.errors import BadInputError

ImageSuffix = Literal["jpg", "png", "webp", "gif", "bmp"]
Reason = Literal[
    "undecodable_image",
    "truncated_image",
    "too_many_pixels",
    "format_not_allowed",
    "missing_image",
    "no_image",
    "too_many_bytes",
    "path_escapes",
]

MAX_PIXELS = 64_000_000
MAX_IMAGE_BYTES = 64 * 1024 * 1024

# The parsers are called by name: `Image.open` would try others, and it warns by a global flag.
_PARSERS: dict[ImageSuffix, Callable[[BytesIO], ImageFile]] = {
    "jpg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
}

# What parsers raise on bytes that are not what they claim to be.
_PARSE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRejected(BadInputError):  # noqa: N818
    """An image that is not used, and why.

    Attributes:
        reason: One of `Reason`.
        detail: What was found.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def image_suffix(data: bytes) -> ImageSuffix:
    """The format of an image by its first bytes.

    Raises:
        ImageRejected: `format_not_allowed`, or `undecodable_image` when there are no bytes.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith(b"BM"):
        return "bmp"
    if not data:
        raise ImageRejected("undecodable_image", "the file is empty")
    raise ImageRejected(
        "format_not_allowed",
        f"it starts with {data[:8]!r}; allowed are JPEG, PNG, WebP, GIF and BMP",
    )


def read_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as RGB: on white, upright (EXIF), the first frame, 16 bit scaled to 8.

    Args:
        data: An image file's bytes.
        max_pixels: Width times height allowed; checked on the header, before anything is decoded.

    Raises:
        ImageRejected: With the reason.
    """
    suffix = image_suffix(data)
    if _is_cut(data, suffix):
        raise ImageRejected("truncated_image", f"the {suffix} has no end")
    try:
        with _PARSERS[suffix](BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageRejected(
                    "too_many_pixels", f"{width} x {height} pixels, more than {max_pixels:,}"
                )
            image.load()
            return _upright_rgb(image)
    except _PARSE_ERRORS as error:
        cut = "truncated" in str(error).lower()
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            raise ImageRejected("too_many_pixels", str(error)) from error
        raise ImageRejected(
            "truncated_image" if cut else "undecodable_image", f"{suffix}: {error}"
        ) from error


def read_image_bytes(root: Path, image_uri: str, *, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes of an image file, which lies inside `root` even after its links are followed.

    Raises:
        ImageRejected: It is missing, no plain file, outside, a web address, or too large.
    """
    if image_uri.startswith(("http://", "https://")):
        raise ImageRejected("no_image", f"{image_uri} is on the web; that is never fetched")
    if not image_uri:
        raise ImageRejected("no_image", "the pair has no image")
    try:
        path = (root / image_uri).resolve()
        if not path.is_relative_to(root.resolve()):
            raise ImageRejected("path_escapes", f"{image_uri} leads outside {root}")
        # Not blocking: a named pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageRejected("missing_image", f"{root / image_uri}: {error}") from error
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise ImageRejected("missing_image", f"{path} is not a plain file")
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(max_bytes + 1) if state.st_size <= max_bytes else b""
    if state.st_size > max_bytes or len(data) > max_bytes:
        raise ImageRejected(
            "too_many_bytes", f"{path} has {state.st_size:,} bytes, more than {max_bytes:,}"
        )
    return data


def _is_cut(data: bytes, suffix: ImageSuffix) -> bool:
    """True when the end that the format asks for is not there; decoders often do without it."""
    if suffix == "png":
        return data.rfind(b"IEND\xaeB`\x82") < 0
    if suffix == "jpg":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if suffix == "webp":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return False


def _upright_rgb(image: ImageFile) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _PARSE_ERRORS:
        turn = None  # Broken EXIF around a sound picture: as it lies.
    flat = _on_white(image)
    return flat if turn is None else flat.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")
