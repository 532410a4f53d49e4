"""Reader of a Parquet export, as Hugging Face's `datasets` writes it.

An image is bytes, or a struct of `bytes` and `path`; a label is a whole number or a name. The names
of numbers are in the file's schema metadata (`ClassLabel`) or in a `classes.txt` beside it.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.images.decoders import decoders
from cit_curate.images.read import ImageRejected, read_image_bytes
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.records import Int64
from cit_train.evaluation.readers.file_list import read_class_names
from cit_train.evaluation.readers.labelled_images import SourceImages
from cit_train.evaluation.readers.webdataset_export import read_templates

__all__ = ["find_parquet", "open_parquet_export"]

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label", "class", "target")
_SPLITS = ("test", "validation", "val")
_MAX_LABEL = 10**12
# Row groups in memory at once: threads read ahead across a row group's end.
_GROUPS_KEPT = 2


class ParquetImages:
    """The images of Parquet files; a row group is read when one of its images is requested."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        self._column = column
        # (file, row group), in order; `starts` has the number of rows before each
        self._groups: list[tuple[Path, int]] = []
        starts = [0]
        for path in files:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    self._groups.append((path, group))
                    starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        self._starts = np.array(starts, dtype=np.int64)
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def content(self, row: int) -> bytes:
        """The bytes in the row, or those of the file that it names."""
        group, offset = self._locate(row)
        value = self._rows(group)[offset].as_py()
        if isinstance(value, dict):
            data, name = value.get("bytes"), value.get("path")
            if data is None and name:
                if Path(name).is_absolute():
                    raise ImageRejected(
                        "path_escapes",
                        f"the row has no bytes but the path {name}; export with the images in it "
                        "(`push_to_hub` does so, `to_parquet` after `embed_table_storage`)",
                    )
                return read_image_bytes(self._groups[group][0].parent, name)
            value = data
        if value is None:
            raise ImageRejected("no_image", "the row has no image")
        content: bytes = value
        return content

    def read(self, row: int) -> Image.Image:
        """The image as RGB."""
        return decoders().read_image(self.content(row))

    def title(self, row: int) -> str:
        """The file and the row in it, from 0."""
        group, offset = self._locate(row)
        path, number = self._groups[group]
        return f"{path}: row {offset} of row group {number}"

    def _locate(self, row: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return group, row - int(self._starts[group])

    def _rows(self, group: int) -> pa.ChunkedArray:
        with self._lock:
            if group not in self._kept:
                path, number = self._groups[group]
                try:
                    with pq.ParquetFile(path) as file:
                        table = file.read_row_group(number, columns=[self._column])
                except (pa.ArrowException, OSError) as error:
                    raise _damaged(path, error) from error
                self._kept[group] = table.column(self._column)
                while len(self._kept) > _GROUPS_KEPT:
                    self._kept.popitem(last=False)
            return self._kept[group]


def find_parquet(folder: Path) -> list[Path]:
    """The Parquet files of the test split, else of the validation split, else all; sorted."""
    files = sorted(
        path
        for parent in (folder, folder / "data", folder / "test", folder / "default")
        for path in parent.glob("*.parquet")
    )
    for split in _SPLITS:
        of_split = [path for path in files if path.name.startswith(split)]
        if of_split:
            return of_split
    in_test = [path for path in files if path.parent.name == "test"]
    return in_test or [path for path in files if not path.name.startswith("train")]


def open_parquet_export(folder: Path) -> SourceImages:
    """Read the labels of an export; images are read on request.

    Raises:
        ConfigError: There is no Parquet file, or no column with images or with labels.
        DamagedError: A file is truncated or not Parquet.
        BadInputError: A row has no label.
    """
    files = find_parquet(folder)
    if not files:
        raise ConfigError(f"there is no Parquet file of a test split in {folder}")
    tables = [_open(path) for path in files]
    schema = tables[0].schema_arrow
    image = _column(schema, _IMAGE_COLUMNS, "images", files[0])
    label = _column(schema, _LABEL_COLUMNS, "labels", files[0])
    values: list[Any] = []
    for path, table in zip(files, tables, strict=True):
        with table:
            try:
                values += table.read(columns=[label]).column(0).to_pylist()
            except (pa.ArrowException, OSError, IndexError) as error:
                raise _damaged(path, error) from error
    images = ParquetImages(files, image)
    if None in values:
        where = images.title(values.index(None))
        raise BadInputError(f"{where} has no label; a test split without labels cannot be used")
    names = _class_names(schema, label) or read_class_names(folder)
    labels, names = _labels(values, names, files[0])
    return SourceImages(
        reader="Parquet export",
        images=images,
        labels=labels,
        names=names,
        prompts=read_templates(folder),
    )


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _column(schema: pa.Schema, known: Sequence[str], what: str, path: Path) -> str:
    for name in known:
        if name in schema.names:
            return name
    raise ConfigError(
        f"{path} has no column with {what}: it has {', '.join(schema.names)}; "
        f"name one of them {' or '.join(known[:2])}"
    )


def _class_names(schema: pa.Schema, label: str) -> tuple[MetadataEntry, ...] | None:
    """The class names that `datasets` stores in the schema metadata, in the order of the labels."""
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        names: Any = json.loads(raw)["info"]["features"][label]["names"] if raw else None
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(MetadataEntry(name.replace("_", " ")) for name in names) or None


def _labels(
    values: list[Any], names: tuple[MetadataEntry, ...] | None, path: Path
) -> tuple[Int64, tuple[MetadataEntry, ...] | None]:
    if all(isinstance(value, int) and abs(value) < _MAX_LABEL for value in values):
        labels = np.array(values, dtype=np.int64)
        if names is not None and not 0 <= labels.min() <= labels.max() < len(names):
            raise BadInputError(
                f"{path}: labels are {labels.min()} to {labels.max()}, "
                f"but there are only {len(names)} names"
            )
        return labels, names
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{path}: labels must be names, or whole numbers that count from 0")
    distinct = sorted(set(values))
    position = {name: at for at, name in enumerate(distinct)}
    labels = np.array([position[value] for value in values], dtype=np.int64)
    return labels, tuple(MetadataEntry(name) for name in distinct)


def _damaged(path: Path, error: Exception) -> DamagedError:
    size = path.stat().st_size if path.exists() else 0
    return DamagedError(f"{path} ({size:,} bytes) is damaged or still being copied: {error}")
