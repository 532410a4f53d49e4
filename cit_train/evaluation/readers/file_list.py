"""Reader of a file list: a table of image paths and labels."""

import csv
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cit_curate.encodings import HEAD_BYTES, encoding_of, read_text
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.images.decoders import decoders
from cit_curate.images.read import read_image_bytes
from cit_curate.images.suffixes import IMAGE_SUFFIXES
from cit_curate.metadata.class_files.read import read_class_file
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.reject_limit import RejectLimit
from cit_train.evaluation.readers.class_names import find_name, key_positions
from cit_train.evaluation.readers.labelled_images import SourceImages

__all__ = ["FILE_LISTS", "find_file_list", "open_file_list", "open_list_in", "read_class_names"]

# `metadata.*` is what Hugging Face's `imagefolder` writes; without labels it is for something else.
FILE_LISTS = (
    *("labels.csv", "labels.tsv", "labels.txt", "labels.jsonl"),
    *("metadata.csv", "metadata.tsv", "metadata.jsonl"),
)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_CLASS_FILES = ("classes.txt", "classnames.txt")
# In lower case, and without what is no letter: `file_name` is `filename`.
_PATH_COLUMNS = ("path", "file", "filename", "filepath", "image", "imagepath", "imagefile", "img")
_LABEL_COLUMNS = ("label", "labels", "class", "classname", "target", "category", "labelname")
# Images of a list that are looked for before anything is decoded.
_IMAGES_TRIED = 1000


@dataclass(frozen=True)
class ListedImages:
    """Images below a folder, named by a list; a path that leads out of the folder is rejected."""

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def content(self, row: int) -> bytes:
        """The bytes of the file."""
        return read_image_bytes(self.root, self.paths[row])

    def read(self, row: int) -> Image.Image:
        """The image as RGB."""
        return decoders().read_image(self.content(row))

    def title(self, row: int) -> str:
        """The image's path."""
        return str(self.root / self.paths[row])


def find_file_list(folder: Path) -> Path | None:
    """The file in a folder that lists images with their labels; None = there is none.

    A table of something else is no such list: the captions in a `metadata.csv`, or the names in a
    `labels.txt` beside class folders.
    """
    for name in FILE_LISTS:
        path = folder / name
        if path.is_file() and (_is_list(path) or not _may_be_other(path)):
            return path
    return None


def open_list_in(folder: Path, *, use_class_file: bool = True) -> SourceImages | None:
    """The images that a folder's file list names, which are there; None = it has no file list.

    Raises:
        ConfigError: As `open_file_list`.
        BadInputError: As `open_file_list`, or more than 1 % of a thousand images are not there.
    """
    path = find_file_list(folder) if folder.is_dir() else None
    if path is None:
        return None
    source = open_file_list(path, use_class_file=use_class_file)
    # Now, since a run would end at its first evaluation.
    rows = range(0, len(source.images), max(1, len(source.images) // _IMAGES_TRIED))
    tried = [source.images.title(row) for row in rows]
    missing = [image for image in tried if not os.path.exists(image)]  # noqa: PTH110 - any name
    if RejectLimit().is_exceeded(len(missing), num_seen=len(tried)):
        raise BadInputError(
            f"{path}: {len(missing)} of {len(tried)} images are not there, such as {missing[0]}; "
            "a path is relative to the folder of the list"
        )
    return source


def open_file_list(path: Path, *, use_class_file: bool = True) -> SourceImages:
    """Read a list of images, one a line: the path below the list's folder, and the label.

    `.csv` has commas, `.tsv` tabs; in `.txt` the label follows the first tab, or else the last
    space; `.jsonl` has an object a line. A header, which only `.jsonl` and `metadata` files need,
    names the columns (path, file_name, image, …; label, class, target, …). Labels are numbers from
    0, or else class names. A `classes.txt` beside the list names the numbers.

    Args:
        path: The list.
        use_class_file: Whether a `classes.txt` beside the list is read.

    Raises:
        ConfigError: The list is empty, or its header lacks a column.
        BadInputError: A line has no label, or the table cannot be read.
    """
    rows = _rows(path)
    paths = tuple(image for image, _ in rows)
    texts = [label for _, label in rows]
    names = read_class_names(path.parent) if use_class_file else None
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
            return read_class_file(folder / name, flag="").entries
    return None


def _rows(path: Path) -> list[tuple[str, str]]:
    table = _table(read_text(path), path)
    numbered = [(line, cells) for line, cells in table if any(cells)]
    if not numbered:
        raise ConfigError(f"{path} lists no image; write a path and a label on each line")
    columns = _columns_without_header(numbered[0][1])
    if columns is None:
        columns = _columns(numbered[0][1], path)
        numbered = numbered[1:]
    path_column, label_column = columns
    rows = []
    for line, cells in numbered:
        if max(columns) >= len(cells) or not cells[label_column].strip():
            raise BadInputError(f"{path}:{line}: {cells[:2]} has no label; write path and label")
        rows.append((cells[path_column].strip(), cells[label_column].strip()))
    if not rows:
        raise ConfigError(f"{path} has a header and no image; write a path and a label a line")
    return rows


def _table(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """Each line with its number; of JSON lines, the keys of the first one are the header."""
    if path.suffix == ".jsonl":
        return _json_table(text, path)
    delimiter = _DELIMITERS.get(path.suffix)
    if delimiter is None:
        return list(enumerate(map(_split, text.splitlines()), 1))
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise BadInputError(f"{path} is not a table: {error}") from error
    return list(enumerate(rows, 1))


def _json_table(text: str, path: Path) -> list[tuple[int, list[str]]]:
    table: list[tuple[int, list[str]]] = []
    header: list[str] = []
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{path}:{line} is no JSON object: {error}") from error
        if not isinstance(value, dict):
            raise BadInputError(f"{path}:{line} is no JSON object")
        if not header:
            header = list(value)
            table.append((0, header))
        cells = [value.get(name) for name in header]
        table.append((line, ["" if cell is None else str(cell) for cell in cells]))
    return table


def _is_list(path: Path) -> bool:
    """Whether the first line is an image, or a header with the columns of a file list."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        lines = head.decode(encoding_of(head, path), errors="replace").splitlines()
        table = _table(next(filter(str.strip, lines), ""), path)
    except (BadInputError, ConfigError):
        return False
    first = table[0][1] if table else []
    return _columns_without_header(first) is not None or _named_columns(first) is not None


def _may_be_other(path: Path) -> bool:
    """Whether a table that lists no images may have another purpose."""
    folders = [each for each in path.parent.iterdir() if each.is_dir() and each.name[0] != "."]
    return path.stem == "metadata" or len(folders) > 1


def _columns_without_header(cells: list[str]) -> tuple[int, int] | None:
    """The columns of path and label where the first line is an image; None = it is a header."""
    paths = [
        column
        for column, cell in enumerate(cells)
        if Path(cell.strip()).suffix.lower() in IMAGE_SUFFIXES
    ]
    if not paths:
        return None
    return paths[0], 1 if paths[0] == 0 else 0


def _split(line: str) -> list[str]:
    cells = line.split("\t", 1) if "\t" in line else line.strip().rsplit(" ", 1)
    return [cell.strip() for cell in cells]


def _columns(header: list[str], path: Path) -> tuple[int, int]:
    columns = _named_columns(header)
    if columns is None:
        raise ConfigError(
            f"{path}: its first line, {', '.join(header)}, is neither an image with its label nor "
            f"a header with one column of {', '.join(_PATH_COLUMNS)} "
            f"and one of {', '.join(_LABEL_COLUMNS)}"
        )
    return columns


def _named_columns(header: list[str]) -> tuple[int, int] | None:
    """The columns of path and label by the names in a header."""
    names = ["".join(filter(str.isalpha, cell.lower())) for cell in header]
    path_columns = [names.index(name) for name in _PATH_COLUMNS if name in names]
    label_columns = [names.index(name) for name in _LABEL_COLUMNS if name in names]
    return (path_columns[0], label_columns[0]) if path_columns and label_columns else None


def _positions(texts: list[str], names: tuple[MetadataEntry, ...], path: Path) -> np.ndarray:
    exact = {entry.name: position for position, entry in enumerate(names)}
    by_key = key_positions(names)
    position_of = {text: exact.get(text, find_name(text, by_key)) for text in set(texts)}
    unknown = [text for text in texts if position_of[text] is None]
    if unknown:
        raise BadInputError(
            f"{path}: label {unknown[0]!r} (and {len(unknown) - 1} further ones) is not in "
            f"the class file beside it"
        )
    return np.array([position_of[text] for text in texts], dtype=np.int64)


def _check_labels(labels: np.ndarray, names: tuple[MetadataEntry, ...] | None, path: Path) -> None:
    if names is not None and labels.max() >= len(names):
        raise BadInputError(
            f"{path}: label {labels.max()} is beyond the {len(names)} classes that the class file "
            "beside it names; labels count from 0"
        )
