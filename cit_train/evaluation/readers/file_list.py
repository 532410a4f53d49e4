"""Reader of a file list: a table of image paths and labels."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cit_curate.errors import BadInputError, ConfigError
from cit_curate.images.decoders import decoders
from cit_curate.images.read import read_image_bytes
from cit_curate.images.suffixes import IMAGE_SUFFIXES
from cit_curate.metadata.entries import MetadataEntry, parse_entries, read_utf8
from cit_train.evaluation.readers.labelled_images import SourceImages

__all__ = ["FILE_LISTS", "open_file_list", "read_class_names"]

FILE_LISTS = ("labels.csv", "labels.tsv", "labels.txt")
_CLASS_FILES = ("classes.txt", "classnames.txt")
_PATH_COLUMNS = ("path", "file", "filename", "image")
_LABEL_COLUMNS = ("label", "class", "target")


@dataclass(frozen=True)
class ListedImages:
    """Images below a folder, named by a list; a path that leads out of the folder is rejected."""

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> Image.Image:
        """The image as RGB."""
        return decoders().read_image(read_image_bytes(self.root, self.paths[row]))

    def title(self, row: int) -> str:
        """The image's path."""
        return str(self.root / self.paths[row])


def open_file_list(path: Path) -> SourceImages:
    """Read a list of images, one a line: the path below the list's folder, and the label.

    `.csv` has commas, `.tsv` tabs; in `.txt` the label follows the first tab, or else the last
    space. An optional header names the columns (path, file, filename or image; label, class or
    target). Labels are numbers from 0, or else class names. A `classes.txt` beside the list names
    the numbers.

    Raises:
        ConfigError: The list is empty, or its header lacks a column.
        BadInputError: A line has no label, or the table cannot be read.
    """
    rows = _rows(path)
    paths = tuple(image for image, _ in rows)
    texts = [label for _, label in rows]
    names = read_class_names(path.parent)
    if all(re.fullmatch(r"\d{1,9}", text) for text in texts):
        labels = np.array([int(text) for text in texts], dtype=np.int64)
        _check_labels(labels, names, path)
    else:
        names = names or tuple(MetadataEntry(text) for text in sorted(set(texts)))
        labels = _positions(texts, names, path)
    return SourceImages(
        reader="file list", images=ListedImages(path.parent, paths), labels=labels, names=names
    )


def read_class_names(folder: Path) -> tuple[MetadataEntry, ...] | None:
    """The classes of `classes.txt` (or `classnames.txt`) in a folder, in the order of the labels.

    Two classes may have one name, so each line is an entry of its own.
    """
    for name in _CLASS_FILES:
        if (folder / name).is_file():
            lines = read_utf8(folder / name).splitlines()
            return tuple(entry for line in lines for entry in parse_entries([line])) or None
    return None


def _rows(path: Path) -> list[tuple[str, str]]:
    text = read_utf8(path)
    if path.suffix == ".txt":
        table = [_split(line) for line in text.splitlines()]
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        try:
            table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        except csv.Error as error:
            raise BadInputError(f"{path} is not a table: {error}") from error
    numbered = [(line, cells) for line, cells in enumerate(table, 1) if any(cells)]
    if not numbered:
        raise ConfigError(f"{path} lists no image; write a path and a label on each line")
    path_column, label_column = 0, 1
    if not any(Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in numbered[0][1]):
        path_column, label_column = _columns(numbered[0][1], path)
        numbered = numbered[1:]
    rows = []
    for line, cells in numbered:
        if max(path_column, label_column) >= len(cells) or not cells[label_column].strip():
            raise BadInputError(f"{path}:{line}: {cells[:2]} has no label; write path and label")
        rows.append((cells[path_column].strip(), cells[label_column].strip()))
    if not rows:
        raise ConfigError(f"{path} has a header and no image; write a path and a label a line")
    return rows


def _split(line: str) -> list[str]:
    cells = line.split("\t", 1) if "\t" in line else line.strip().rsplit(" ", 1)
    return [cell.strip() for cell in cells]


def _columns(header: list[str], path: Path) -> tuple[int, int]:
    names = [cell.strip().lower() for cell in header]
    path_columns = [names.index(name) for name in _PATH_COLUMNS if name in names]
    label_columns = [names.index(name) for name in _LABEL_COLUMNS if name in names]
    if not path_columns or not label_columns:
        raise ConfigError(
            f"{path}: its first line, {', '.join(header)}, is neither an image with its label nor "
            f"a header with one column of {', '.join(_PATH_COLUMNS)} "
            f"and one of {', '.join(_LABEL_COLUMNS)}"
        )
    return path_columns[0], label_columns[0]


def _positions(texts: list[str], names: tuple[MetadataEntry, ...], path: Path) -> np.ndarray:
    position = {entry.name: at for at, entry in enumerate(names)}
    unknown = [row for row, text in enumerate(texts) if text not in position]
    if unknown:
        raise BadInputError(
            f"{path}: label {texts[unknown[0]]!r} (and {len(unknown) - 1} further ones) is not in "
            f"the class file beside it"
        )
    return np.array([position[text] for text in texts], dtype=np.int64)


def _check_labels(labels: np.ndarray, names: tuple[MetadataEntry, ...] | None, path: Path) -> None:
    if names is not None and labels.max() >= len(names):
        raise BadInputError(
            f"{path}: label {labels.max()} is beyond the {len(names)} classes that the class file "
            "beside it names; labels count from 0"
        )
