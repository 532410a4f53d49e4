"""A well-defined RGB picture from untrusted bytes.

This module imports no Arrow, which halves the start-up time of the decoder processes.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cit_curate.images.rejected import ImageRejected
from cit_curate.images.suffixes import ALLOWED_FORMATS

ImageSuffix = Literal["jpg", "png", "webp", "gif", "bmp"]
AnyFormat = ImageSuffix | Literal["tiff", "avif"]

MAX_PIXELS = 64_000_000

# The parsers are called by name: `Image.open` would try others, and it warns by a global flag.
_PARSERS: dict[AnyFormat, Callable[[BytesIO], ImageFile]] = {
    "jpg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "avif": AvifImageFile,
}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS = (b"avif", b"avis")

# Raised by parsers when bytes are not what they claim to be.
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

# Any marker of a JPEG but the restarts within a scan; 0xFF 0x00 is a byte of a scan.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")

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
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
# Converting these to RGB cannot fail, nor can putting RGBA on white.
_SURE_MODES = ("L", "RGB", "RGBA", "CMYK")
# The modes whose every value a PNG holds.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


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
        "format_not_allowed", f"it starts with {data[:8]!r}; allowed are {ALLOWED_FORMATS}"
    )


def any_format(data: bytes) -> AnyFormat:
    """The format of an image by its first bytes, also of those that only exports read.

    Raises:
        ImageRejected: As `image_suffix`.
    """
    if data.startswith(_TIFF_STARTS):
        return "tiff"
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS:
        return "avif"
    return image_suffix(data)


class OpenedImage:
    """An image with an accepted header; its pixels are decoded once, on demand."""

    def __init__(
        self, data: bytes, *, max_pixels: int = MAX_PIXELS, any_format_is_allowed: bool = False
    ) -> None:
        """Read the header.

        Args:
            data: The bytes of an image file.
            max_pixels: The most pixels (width times height), checked before anything is decoded.
            any_format_is_allowed: Whether TIFF and AVIF are read, too.

        Raises:
            ImageRejected: The format, the header or the size is not acceptable.
        """
        self._suffix = any_format(data) if any_format_is_allowed else image_suffix(data)
        if _is_cut(data, self._suffix):
            raise ImageRejected("truncated_image", f"the {self._suffix} has no end")
        with _rejecting(self._suffix):
            self._image = _PARSERS[self._suffix](BytesIO(data))
            width, height = self._image.size
            if width * height > max_pixels:
                raise ImageRejected(
                    "too_many_pixels", f"{width} x {height} pixels, more than {max_pixels:,}"
                )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture at full resolution; decodes all but a JPEG.

        Raises:
            ImageRejected: The image does not decode.
        """
        with _rejecting(self._suffix):
            if self._suffix != "jpg":  # other formats may have their EXIF after the pixels
                self._image.load()
            width, height = self._image.size
            return (height, width) if _turn(self._image) in _SIDEWAYS else (width, height)

    def read(self, *, reduction: int = 1) -> Image.Image:
        """The picture as RGB: on white, upright (EXIF), the first frame, 16 bits scaled to 8.

        Args:
            reduction: 1, 2, 4 or 8: the factor by which a JPEG's width and height are divided,
                rounded up, within its cosine transform. Other formats are never reduced.

        Raises:
            ImageRejected: The image does not decode.
        """
        with _rejecting(self._suffix), self._image as image:
            if reduction > 1 and isinstance(image, JpegImageFile):
                _reduce(image, reduction)
            image.load()
            return _upright_rgb(image)

    def read_all(self) -> Image.Image:
        """The picture with its own colours and transparency: upright (EXIF), the first frame.

        Returns:
            A mode of PNG, every value as in the image; where PNG has none (CMYK, floats), RGB as
            `read` gives it.

        Raises:
            ImageRejected: The image does not decode.
        """
        with _rejecting(self._suffix), self._image as image:
            image.load()
            turn = _turn(image)
            if image.mode in _PNG_MODES:
                whole: Image.Image = image
            elif image.mode in ("PA", "La", "RGBa"):
                whole = image.convert("LA" if image.mode == "La" else "RGBA")
            elif image.mode.startswith("I") and _is_16_bit(image):
                whole = image.convert("I").convert("I;16")
            else:
                whole = _on_white(image)
                whole.info.pop("icc_profile", None)  # it may be about other colours
            return whole.copy() if turn is None else whole.transpose(turn)

    def check(self) -> None:
        """Check that `read` would succeed, in less time.

        Of a JPEG, all coefficients are read but only one pixel in 64 is computed. In any format,
        pixels whose conversion to RGB cannot fail are not converted.

        Raises:
            ImageRejected: As `read`.
        """
        with _rejecting(self._suffix), self._image as image:
            if isinstance(image, JpegImageFile):
                _reduce(image, 8, mode="L")
            image.load()
            if image.mode not in _SURE_MODES or _may_be_transparent(image):
                _upright_rgb(image)


def read_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as RGB: on white, upright (EXIF), the first frame, 16 bits scaled to 8.

    Args:
        data: The bytes of an image file.
        max_pixels: The most pixels (width times height), checked before anything is decoded.

    Raises:
        ImageRejected: The image does not decode.
    """
    return OpenedImage(data, max_pixels=max_pixels).read()


def check_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
    """Check that `read_image` would succeed, in about two thirds of its time.

    Raises:
        ImageRejected: As `read_image`.
    """
    OpenedImage(data, max_pixels=max_pixels).check()


def _is_cut(data: bytes, suffix: AnyFormat) -> bool:
    """Whether the end that the format requires is missing; decoders often tolerate that."""
    if suffix == "png":
        return data.rfind(b"IEND\xaeB`\x82") < 0
    if suffix == "jpg":
        # A scan without an end after it. Searching for the last scan would go over all of it.
        end = data.rfind(b"\xff\xd9")
        return data.find(b"\xff\xda", end + 1) >= 0 and not _jpeg_ends(data)
    if suffix == "webp":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return False


def _jpeg_ends(data: bytes) -> bool:
    """Whether the first image of a JPEG has its end, marker by marker.

    Phones append a film to a picture ("motion photo"), whose bytes may look like markers.
    Source: ITU-T T.81, annex B.
    """
    position = 2
    while (marker := _MARKER.search(data, position)) is not None:
        position = marker.end()
        if marker[1] == b"\xd9":
            return True
        # Behind the header of a scan, the search goes on through its data.
        if marker[1] != b"\xd8":
            position += int.from_bytes(data[position : position + 2], "big")
    return False


@contextmanager
def _rejecting(suffix: AnyFormat) -> Iterator[None]:
    """Turn the errors of parsers into `ImageRejected`."""
    try:
        yield
    except _PARSE_ERRORS as error:
        cut = "truncated" in str(error).lower()
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            raise ImageRejected("too_many_pixels", str(error)) from error
        raise ImageRejected(
            "truncated_image" if cut else "undecodable_image", f"{suffix}: {error}"
        ) from error


def _reduce(image: JpegImageFile, reduction: int, mode: str | None = None) -> None:
    """Set the reduced size of a JPEG; PIL keeps both sides at least as long as requested."""
    width, height = image.size
    image.draft(mode, (max(width // reduction, 1), max(height // reduction, 1)))


def _turn(image: ImageFile) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _PARSE_ERRORS:
        return None  # broken EXIF in a sound picture: not turned


def _upright_rgb(image: ImageFile) -> Image.Image:
    turn = _turn(image)
    flat = _on_white(image)
    return flat if turn is None else flat.transpose(turn)


def _may_be_transparent(image: Image.Image) -> bool:
    return image.mode != "RGBA" and image.has_transparency_data


def _is_16_bit(image: Image.Image) -> bool:
    values = np.asarray(image.convert("I"))
    return bool(values.min() >= 0 and values.max() <= 0xFFFF)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy
