"""The metadata files of an imagefolder: `metadata.jsonl`, `.csv` or `.parquet` that names images.

Source: https://huggingface.co/docs/datasets/image_dataset, "ImageFolder".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cit_curate.config import ReadConfig
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.sources.columns import Columns, column_kind
from cit_curate.sources.embedded import is_list
from cit_curate.sources.folders.walk import walk
from cit_curate.sources.parquet import parquet_schema
from cit_curate.sources.text.files import text_lines
from cit_curate.sources.text.jsonl import FieldError, parse_object
from cit_curate.sources.text.table import open_lines

FILE_NAME = "file_name"
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Rows to look at, to tell the columns and which of them hold text.
_LOOKED_AT = 100


@dataclass(frozen=True)
class MetadataFile:
    """A file whose rows name images.

    Attributes:
        prefix: Its folder's path below the source, with a slash at its end; "" for the source.
        path: The file.
        columns: Its columns.
        texts: Those that hold text, or lists of texts.
        image: The column with the path of the image, which starts from the file's folder.
    """

    prefix: str
    path: Path
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    image: str

    @property
    def shown(self) -> str:
        """Its path below the source."""
        return self.prefix + self.path.name


@dataclass(frozen=True)
class _Described:
    """The columns of a file, those with texts or lists of texts, and those with lists."""

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    lists: tuple[str, ...]


def metadata_files(
    source: Path, root: Path, columns: Columns, reading: ReadConfig
) -> list[MetadataFile]:
    """The metadata files of a folder and of those below it, at most one of each folder.

    A file of such a name without a column of file names is none.

    Raises:
        ConfigError: A file names several images in a row, or its encoding must be given.
        DamagedError: A Parquet file is damaged.
    """
    found = []
    for listing in walk(source, root):
        for name in METADATA_NAMES:
            if name in listing.names:
                file = _opened(listing.prefix, listing.path / name, columns, reading)
                if file is not None:
                    found.append(file)
                    break
    return found


def names_images(path: Path) -> bool:
    """Whether a Parquet file is the metadata of an imagefolder, by its name and columns.

    Raises:
        DamagedError: It is damaged.
    """
    is_named = path.name == METADATA_NAMES[2]
    return is_named and any(_is_file_name(name) for name in parquet_schema(path).names)


def _opened(prefix: str, path: Path, columns: Columns, reading: ReadConfig) -> MetadataFile | None:
    try:
        described = _DESCRIBE[path.suffix](path, columns, reading)
    except BadInputError:  # it is empty, or of another kind
        return None
    image = _image_column(path, described, columns)
    if not image:
        return None
    return MetadataFile(prefix, path, described.columns, described.texts, image)


def _image_column(path: Path, described: _Described, columns: Columns) -> str:
    """The column that names the image of a row; "" for none.

    Raises:
        ConfigError: A row names several images.
    """
    several = [name for name in described.columns if _is_file_name(name, "file_names")]
    single = [name for name in described.columns if _is_file_name(name)]
    if columns.image in described.columns:
        single = [columns.image or ""]
    elif FILE_NAME in single:
        single = [FILE_NAME]
    if not single and not several:
        return ""
    if len(single) > 1:
        raise ConfigError(
            f"{path} has several columns of file names, {', '.join(single)}, and a pair has one "
            "image: say which with --image COLUMN"
        )
    image = single[0] if single else several[0]
    if not single or image in described.lists:
        raise ConfigError(
            f"{path}: the column {image!r} names several images in a row, which is not supported: "
            f"a pair has one image; write a row for each, with a column {FILE_NAME}"
        )
    return image


def _is_file_name(column: str, name: str = FILE_NAME) -> bool:
    return column == name or column.endswith(f"_{name}")


def _describe_jsonl(path: Path, columns: Columns, reading: ReadConfig) -> _Described:
    objects = []
    lines = chain.from_iterable(text_lines(path, reading.encoding).blocks())
    for line in islice(lines, _LOOKED_AT):
        try:
            objects.append(parse_object(line))
        except FieldError:
            continue
    return _described(objects)


def _describe_csv(path: Path, columns: Columns, reading: ReadConfig) -> _Described:
    image = columns.image or FILE_NAME
    table = open_lines(path, replace(columns, image_id=None, image=image), "csv", reading)
    records = (cells for _, _, cells, _, _ in table.format.records(table.lines) if cells)
    rows = list(islice(records, int(table.has_header), _LOOKED_AT))
    described = _described([dict(zip(table.header, row, strict=False)) for row in rows])
    texts = [
        name
        for number, name in enumerate(table.header)
        if not all(_is_number(row[number]) for row in rows if len(row) > number)
    ]
    return replace(described, columns=table.header, texts=tuple(texts))


def _describe_parquet(path: Path, columns: Columns, reading: ReadConfig) -> _Described:
    schema = parquet_schema(path)
    lists = [field for field in schema if is_list(field.type)]
    texts = [field.name for field in schema if column_kind(field.type) == "text"]
    texts += [field.name for field in lists if column_kind(field.type.value_type) == "text"]
    return _Described(tuple(schema.names), tuple(texts), tuple(field.name for field in lists))


_DESCRIBE = {
    ".jsonl": _describe_jsonl,
    ".csv": _describe_csv,
    ".parquet": _describe_parquet,
}


def _described(rows: Sequence[Mapping[str, Any]]) -> _Described:
    names = dict.fromkeys(chain.from_iterable(rows))
    texts = (name for name in names if any(_has_text(row.get(name)) for row in rows))
    lists = (name for name in names if any(isinstance(row.get(name), list) for row in rows))
    return _Described(tuple(names), tuple(texts), tuple(lists))


def _has_text(value: object) -> bool:
    if isinstance(value, list):
        return any(isinstance(each, str) for each in value)
    return isinstance(value, str)


def _is_number(cell: str) -> bool:
    """Whether a cell is a number, or empty."""
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True


def text_columns(files: Sequence[MetadataFile]) -> Iterator[str]:
    """The columns of text of some files, each once, without those that name files or images."""
    for name in dict.fromkeys(chain.from_iterable(file.texts for file in files)):
        is_image = any(name == file.image for file in files)
        if not is_image and not _is_file_name(name) and name != Columns.image_id:
            yield name
