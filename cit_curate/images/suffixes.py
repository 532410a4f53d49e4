"""What the name of an image file tells; what the image is, its first bytes decide (`pictures`)."""

ALLOWED_FORMATS = "JPEG, PNG, WebP, GIF and BMP"

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp", ".jif", ".jfi", ".mpo"),
        *(".png", ".apng", ".webp", ".gif", ".bmp"),
    }
)
"""Suffixes of files that may hold an image of an allowed format."""

OTHER_IMAGE_SUFFIXES = frozenset(
    {
        *(".tif", ".tiff", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"),
        *(".jxl", ".jxr", ".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".j2c", ".jpc"),
        *(".wdp", ".hdp", ".svg", ".svgz", ".ico", ".psd", ".psb", ".xcf", ".tga"),
        *(".dds", ".exr", ".hdr", ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".dib"),
        *(".pcx", ".qoi", ".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw"),
        *(".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".rwl"),
        *(".3fr", ".iiq", ".eps"),
    }
)
"""Suffixes of images in formats that are not decoded: their decoders are not worth the risk."""


def suffix_of(name: str) -> str:
    """The last dot of a file's name and what follows, in lower case; "" for a name without one."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def not_allowed(name: str) -> str:
    """The detail of the reject `format_not_allowed` of a file with this name."""
    return f"{name!a} is no image of an allowed format; allowed are {ALLOWED_FORMATS}"
