"""Reader of folders whose images are named by metadata files, as in Hugging Face's ImageFolder."""

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cit_curate.arrow_numpy import arrow_of
from cit_curate.carried import carried_type
from cit_curate.config import ReadConfig
from cit_curate.errors import ConfigError
from cit_curate.images.presence import is_there
from cit_curate.images.rejected import ImageRejected
from cit_curate.images.root import opened_below
from cit_curate.images.spellings import spellings
from cit_curate.images.suffixes import (
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    not_allowed,
    suffix_of,
)
from cit_curate.sources.columns import Columns
from cit_curate.sources.folders.metadata import METADATA_NAMES, MetadataFile, text_columns
from cit_curate.sources.folders.walk import walk
from cit_curate.sources.parquet import open_parquet
from cit_curate.sources.rows import (
    ROWS_PER_BATCH,
    Note,
    ReadLog,
    Reject,
    SourceReader,
    SourceRows,
    cells_of,
    texts_of_cells,
)
from cit_curate.sources.text.files import text_lines
from cit_curate.sources.text.jsonl import open_jsonl
from cit_curate.sources.text.table import open_table

# Columns of what is made here; no column of a user has such a name.
_MADE_ID, _IMAGE = "__path__", "__image__"


def open_imagefolder(
    path: Path,
    files: Sequence[MetadataFile],
    columns: Columns,
    *,
    root: Path,
    reading: ReadConfig,
) -> SourceReader:
    """Open a folder whose images are named by metadata files.

    The image id is the image's path below the folder, without its suffix, unless there is a column
    of ids. Rejects are `missing_image` for a row whose file is not there, `path_escapes` for one
    that leads outside of `root`, and `image_without_text` for an image that no row names.

    Args:
        path: The folder, links resolved.
        files: Its metadata files, of which one without the column of texts names no image.
        columns: The columns to read; without a text column, the only one that holds text.
        root: The folder that images must lie in, and that their paths start from.
        reading: How to read the files.

    Raises:
        ConfigError: A column is missing, or there is not exactly one column of text to choose.
        DamagedError: A Parquet file is damaged.
    """
    files, columns, notes = _with_text(files, columns)
    readers = [_open(file, columns, reading) for file in files]
    own = readers[0].columns
    assert own is not None
    for file, reader in zip(files, readers, strict=True):
        assert reader.columns is not None
        if reader.columns.image_id != own.image_id:
            raise ConfigError(f"{path}: {file.shown} and {files[0].shown} differ in --image-id")
        if dict(reader.extra_types) != dict(readers[0].extra_types):
            raise ConfigError(f"{path}: the --extra columns of {file.shown} are of other types")
    out = replace(own, image_id=own.image_id or _MADE_ID, image=_IMAGE)
    for reader in readers:
        notes += reader.notes
    return SourceReader(
        columns=out,
        extra_types=readers[0].extra_types,
        read=lambda: _Rows(path, root, out, readers[0].extra_types).read(files, readers),
        notes=tuple(notes),
    )


def _with_text(
    files: Sequence[MetadataFile], columns: Columns
) -> tuple[list[MetadataFile], Columns, list[str]]:
    """The files to read, the columns with a text column, and what was guessed.

    A data set's test part may have no texts: a file without their columns is left out, if another
    one has them.
    """
    notes = []
    if not columns.text and not columns.caption:
        names = list(text_columns(files))
        if len(names) != 1:
            what = f"several columns of text, {', '.join(names)}" if names else "no column of text"
            raise ConfigError(
                f"{files[0].path} has {what}; say which to read with --text COLUMN,COLUMN; its "
                f"columns are {', '.join(files[0].columns)}"
            )
        columns = replace(columns, text=(names[0],))
        notes.append(f"the texts are the column {names[0]!r} (--text names others)")
    wanted = {*columns.text, *filter(None, (columns.caption, columns.text_key))}
    chosen = [file for file in files if wanted <= {*file.columns}]
    if not chosen:
        return list(files), columns, notes  # Opening the first one says what it has.
    notes += [
        f"{file.shown} has no {', '.join(sorted(wanted))}, so its images have no text"
        for file in files
        if file not in chosen
    ]
    return chosen, columns, notes


def _open(file: MetadataFile, columns: Columns, reading: ReadConfig) -> SourceReader:
    columns = replace(columns, image=file.image)
    if file.path.suffix == ".jsonl":
        return open_jsonl(text_lines(file.path, reading.encoding), columns)
    if file.path.suffix == ".csv":
        return open_table(file.path, columns, "csv", reading)
    return open_parquet(file.path, columns)


@dataclass
class _Rows:
    """The rows of all metadata files of a source, with their images found.

    Attributes:
        source: The folder.
        root: The folder that image paths start from.
        columns: The columns of the rows that come out.
        extra_types: The type of each extra column.
        listed: Each image below the source, by its path below `root`, and whether a row named it.
        num_records: Records so far.
    """

    source: Path
    root: Path
    columns: Columns
    extra_types: Mapping[str, pa.DataType]
    listed: dict[str, bool] = field(default_factory=dict)
    num_records: int = 0

    def read(
        self, files: Sequence[MetadataFile], readers: Sequence[SourceReader]
    ) -> Iterator[SourceRows]:
        log, problems = ReadLog(), []
        for listing in walk(self.source, self.root):
            problems += listing.problems
            log.notes += [Note(1, "link_not_followed", repeat) for repeat in listing.repeats]
            for name in listing.names:
                if suffix_of(name) in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES:
                    self.listed[self._below_root(listing.prefix + name)] = False
                elif name not in METADATA_NAMES:
                    log.notes.append(Note(1, "other_file", listing.prefix + name))
        for file, reader in zip(files, readers, strict=True):
            assert reader.read is not None
            for rows in reader.read():
                yield self._located(rows, file)
        yield from self._rejected(problems, files, log)

    def _located(self, rows: SourceRows, file: MetadataFile) -> SourceRows:
        """Rows of a metadata file, each with its image's path; or a reject if there is none."""
        rejects = [
            replace(
                self._reject(
                    each.record, each.reason, f"{file.shown} line {each.row}: {each.detail}"
                ),
                is_tolerated=False,
            )
            for each in rows.rejects
        ]
        log = ReadLog([*rows.log.notes])
        paths: list[str] = []
        keep = np.zeros(len(rows.lines), np.bool_)
        for row, name in enumerate(texts_of_cells(rows.cells[file.image])):
            try:
                path = self._find(file.prefix, name)
            except ImageRejected as error:
                record = int(rows.records[row])
                where = f"{file.shown} line {rows.lines[row]} names {name!a}"
                rejects.append(self._reject(record, error.reason, f"{where}: {error.detail}"))
                continue
            if path != self._path(file.prefix, name):
                log.notes.append(Note(int(rows.lines[row]), "respelled_path", name))
            keep[row] = True
            paths.append(path)
        mask = arrow_of(keep)
        cells = {name: cells.filter(mask) for name, cells in rows.cells.items()}
        cells[_IMAGE] = cells_of(paths)
        names = None
        if self.columns.image_id == _MADE_ID:
            names = cells[_MADE_ID] = cells_of([self._id(path) for path in paths])
        records = rows.records[keep] + self.num_records
        self.num_records += rows.num_records
        return SourceRows(
            num_records=rows.num_records,
            records=records,
            lines=records + 1,
            cells={name: cells[name] for name in self.columns.names},
            names=names,
            extra={name: values.filter(mask) for name, values in rows.extra.items()},
            rejects=sorted(rejects, key=lambda reject: reject.record),
            log=log,
        )

    def _find(self, prefix: str, name: str) -> str:
        """The path below `root` of the image that a row of a file in the folder `prefix` names.

        Raises:
            ImageRejected: It is not there, lies outside or is of a format that is not allowed.
        """
        if not name.strip():
            raise ImageRejected("missing_image", "no file")
        for written in spellings(name):
            path = self._path(prefix, written)
            if path in self.listed or is_there(self.root, path):
                self.listed[path] = True
                if suffix_of(path) in OTHER_IMAGE_SUFFIXES:
                    raise ImageRejected("format_not_allowed", not_allowed(path))
                return path
        with opened_below(self.root, self._path(prefix, name)):
            raise ImageRejected("missing_image", "it was not there a moment ago")

    def _path(self, prefix: str, name: str) -> str:
        """The path below `root` that a row names; one that begins with `..` leads outside."""
        if name.startswith("/"):
            return posixpath.relpath(posixpath.normpath(name), self.root)
        return posixpath.normpath(self._below_root(prefix + name))

    def _below_root(self, path: str) -> str:
        prefix = self.source.relative_to(self.root).as_posix()
        return path if prefix == "." else f"{prefix}/{path}"

    def _id(self, path: str) -> str:
        stem = os.path.splitext(path)[0]  # noqa: PTH122 - a Path would change `a//b`
        return stem.removeprefix(self._below_root(""))

    def _rejected(
        self, problems: Sequence[tuple[str, str]], files: Sequence[MetadataFile], log: ReadLog
    ) -> Iterator[SourceRows]:
        """Rows with rejects alone: links, and images that no row names."""
        found = [*problems]
        for path, is_named in self.listed.items():
            if is_named:
                continue
            if suffix_of(path) in OTHER_IMAGE_SUFFIXES:
                found.append(("format_not_allowed", not_allowed(path)))
            else:
                own = [
                    file.shown for file in files if path.startswith(self._below_root(file.prefix))
                ]
                named_by = max(own, key=len, default="any metadata file")
                found.append(("image_without_text", f"{path!a} is not named in {named_by}"))
        for first in range(0, max(len(found), 1), ROWS_PER_BATCH):
            some = found[first : first + ROWS_PER_BATCH]
            none = np.zeros(0, np.int64)
            yield SourceRows(
                num_records=len(some),
                records=none,
                lines=none,
                cells={name: cells_of([]) for name in self.columns.names},
                extra={
                    name: pa.nulls(0, carried_type(kind)) for name, kind in self.extra_types.items()
                },
                rejects=[
                    self._reject(number, reason, detail)
                    for number, (reason, detail) in enumerate(some)
                ],
                log=log.taken(),
            )
            self.num_records += len(some)

    def _reject(self, record: int, reason: str, detail: str) -> Reject:
        """The reject of a record, which counts from those so far."""
        number = self.num_records + record
        return Reject(number + 1, reason, detail, number, is_tolerated=True)
