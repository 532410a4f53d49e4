"""Whether the file of an image is there, and what is there instead of one that is not."""

import os
import posixpath
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from cit_curate.images.rejected import ImageRejected
from cit_curate.images.root import ImageRoot, RemoteFolder, opened_below
from cit_curate.images.suffixes import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, suffix_of
from cit_curate.images.uri import parse_image_uri

# Names of a folder to look through, for a hint.
_MAX_NAMES = 100_000
_MAX_FOLDERS = 1_000


def file_of(image_uri: str) -> str:
    """The path of the file in which an image lies, below its image root; "" for a malformed uri."""
    try:
        archived = parse_image_uri(image_uri)
    except ValueError:
        return ""
    return image_uri if archived is None else archived.path


def is_there(root: ImageRoot, image_uri: str) -> bool:
    """Whether the file of an image is there, below `root`; nothing is read of it.

    Raises:
        ResourceError: The network failed at every try.
    """
    path = file_of(image_uri)
    # Most of the time goes to files that are not there, for which one question is enough.
    if not path or (isinstance(root, Path) and not os.path.exists(f"{root}/{path}")):  # noqa: PTH110
        return False
    try:
        with opened_below(root, path):
            return True
    except ImageRejected:
        return False


def shown_file(root: ImageRoot, image_uri: str) -> str:
    """The whole path or URL of an image's file, and the image's place in it, for messages."""
    path = file_of(image_uri) or image_uri
    place = image_uri.partition(path)[2]
    if isinstance(root, RemoteFolder):
        return f"{root.url}/{path}{place}"
    return os.path.normpath(root / path) + place


def hint_for(root: ImageRoot, image_uri: str) -> str:
    """What is there instead of an image's file that is not, as the end of a message; "" if nothing.

    Args:
        root: The image root; only a folder of this machine is looked at.
        image_uri: The uri of an image that `is_there` does not find.
    """
    if isinstance(root, RemoteFolder):
        return ""
    path = file_of(image_uri)
    if is_there(root, image_uri):
        return "the file is there, but not this image in it"
    decoded = unquote(path)
    if decoded != path:
        found = f": {_shown(decoded)} is there" if is_there(root, decoded) else ""
        return f"the path is percent-encoded{found}"
    path = path.strip().replace("\\", "/")
    if posixpath.normpath(path).startswith("../"):
        return f"it leads outside of {root}; --image-root names a folder that holds the images"
    if near := _same_but_for_suffix_or_case(root, path):
        return f"{_shown(near)} is there"
    return _elsewhere(root, path)


def _same_but_for_suffix_or_case(root: Path, path: str) -> str:
    """The path of a file with the same name, but for its suffix or for upper and lower case."""
    folder, name = posixpath.split(path)
    wanted = _plain(name)
    stem = posixpath.splitext(wanted)[0]
    near = ""
    for other in sorted(islice(_names(root / folder), _MAX_NAMES)):
        if _plain(other) == wanted:
            return posixpath.join(folder, other)
        is_image = suffix_of(other) in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES
        if not near and is_image and posixpath.splitext(_plain(other))[0] in (wanted, stem):
            near = posixpath.join(folder, other)
    return near


def _elsewhere(root: Path, path: str) -> str:
    """A hint for a path that starts from another folder than the image root."""
    parts = path.split("/")
    for first in range(1, len(parts)):
        shorter = "/".join(parts[first:])
        if is_there(root, shorter):
            before = "/".join(parts[:first])
            return f"{_shown(shorter)} is there, without {_shown(before)} before it"
    below = sorted(islice(_names(root), _MAX_FOLDERS))
    for folder in (*root.parents[:2], *(root / name for name in below)):
        if folder.is_dir() and is_there(folder, path):
            return f"it is there with --image-root {folder}"
    for name in below:
        if (root / name).is_dir() and is_there(root / name, parts[-1]):
            return f"a file of that name is {_shown(name)}/{_shown(parts[-1])}"
    return ""


def _names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    except (OSError, ValueError):
        return


def _plain(name: str) -> str:
    return normalize("NFC", name).casefold()


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)[1:-1]
