"""The pairs of source rows: checked and cleaned a column at a time, odd values one by one.

Byte patterns find the values that the plain functions would leave unchanged. Only the others go
through the plain functions. The tests compare every result with theirs.
"""

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, numpy_of, strings_of
from cit_curate.captions import replace_bad_text, shown_text
from cit_curate.config import Cleaning
from cit_curate.images.uri import parse_image_uri
from cit_curate.records import Bool, text_key_of
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import (
    ROW_FIELDS,
    Note,
    RawPairs,
    ReadLog,
    Reject,
    SourceRows,
    cells_of,
    texts_of_cells,
)
from cit_curate.sources.texts import Texts, matches, replaced, texts_of
from cit_curate.storage.remote import remote_url

MAX_IMAGE_ID_BYTES = 255
# Enough of a text to tell its encoding, and to show it.
MAX_NOTED_CHARS = 200

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

# Byte patterns that Arrow searches for in the cells of `rows.cells_of`.
_ODD_ID = r"^$|[^\x20-\x7e]"
_ODD_PATH = r"[^\x20-\x7e]|//|\./|^/|[./]$"
_WEB_ADDRESS = r"^https?://[\x20-\x7e]*$"


class RejectRowError(Exception):
    """A row that makes no pair; caught by `pairs_of`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def pairs_of(
    rows: SourceRows,
    columns: Columns,
    *,
    image_root: Path,
    clean: Cleaning = "none",
    source: str = "",
) -> RawPairs:
    """The pairs of rows, in row order; within a row in the order of `Columns.text`.

    Several texts of one row may have the same key: those of a list.

    Args:
        rows: Rows of one source.
        columns: The columns to read.
        image_root: The folder that relative image paths start from and must stay inside.
        clean: The named cleaning of every text.
        source: The source's name in the pool, for the ids of images that have none.
    """
    num_rows = len(rows.lines)
    own_ids, is_named = _own_ids(rows, columns, source)
    ids, bad_ids = _checked_ids(own_ids)
    images = rows.cells[columns.image] if columns.image else pa.array([""] * num_rows)
    uris, bad_uris = _checked_uris(images, image_root)
    keys, bad_keys = _text_keys(rows, columns)
    # A row has one reason: a bad id goes before a bad path, and that before a bad text key.
    problems = {**bad_keys, **bad_uris, **bad_ids}
    is_good = np.ones(num_rows, np.bool_)
    is_good[list(problems)] = False
    names = [columns.caption] if columns.caption else columns.text
    texts = texts_of([rows.cells[name] for name in names], keys, is_good, clean)
    counts = np.bincount(texts.row, minlength=num_rows)
    for row in np.flatnonzero(is_good & (counts == 0)).tolist():
        row_keys = ", ".join(column[row].as_py() for column in keys)
        detail = f"image {ids[row].as_py()}: no text in {row_keys}"
        problems[row] = RejectRowError("empty_text", detail)
    rejects = rows.rejects + [
        Reject(int(rows.lines[row]), problem.reason, problem.detail, int(rows.records[row]))
        for row, problem in problems.items()
    ]
    rejects.sort(key=lambda reject: reject.record)
    kept = counts > 0
    bounds = arrow_of(np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int32))
    row_columns = [arrow_of(rows.lines), ids, uris]
    extra = list(rows.extra.values())
    if not kept.all():
        mask = arrow_of(kept)
        row_columns = [column.filter(mask) for column in row_columns]
        extra = [column.filter(mask) for column in extra]
        is_named = is_named[kept]
    text_columns = [pa.ListArray.from_arrays(bounds, column) for column in texts.columns]
    fields = [pa.field(name, column.type) for name, column in rows.extra.items()]
    schema = pa.schema([*ROW_FIELDS, *fields])
    batch = pa.RecordBatch.from_arrays([*row_columns, *text_columns, *extra], schema=schema)
    log = ReadLog([*rows.log.notes, *_fixed_notes(texts, rows)], rows.log.counts)
    return RawPairs(
        rows.num_records,
        batch,
        rejects,
        log=log,
        is_named=is_named,
        repeats_key=texts.repeats_key,
    )


def _own_ids(rows: SourceRows, columns: Columns, source: str) -> tuple[pa.Array, Bool]:
    """The cells of the image ids, and which of them are names: bool [rows]."""
    if columns.image_id is None:
        ids = cells_of([f"{source}/{record:08d}" for record in rows.records.tolist()])
    else:
        ids = rows.cells[columns.image_id]
    if rows.names is None:
        return ids, np.zeros(len(rows.lines), np.bool_)
    is_named = numpy_of(pc.binary_length(rows.names)) > 0
    ids, names = (cells.cast(pa.large_binary()) for cells in (ids, rows.names))
    return pc.if_else(arrow_of(is_named), names, ids), is_named


def _fixed_notes(texts: Texts, rows: SourceRows) -> Iterator[Note]:
    """A note on each text that was cut or had bytes that are no text, with what it was."""
    for row, raw in texts.fixed:
        kind = "mended_text" if replace_bad_text(raw)[1] else "cut_text"
        yield Note(int(rows.lines[row]), kind, raw[:MAX_NOTED_CHARS])


_Checked = tuple[pa.Array, dict[int, RejectRowError]]


def _checked_ids(cells: pa.Array) -> _Checked:
    encoded = cells.cast(pa.large_binary())
    is_long = numpy_of(pc.binary_length(encoded)) > MAX_IMAGE_ID_BYTES
    return _checked(encoded, matches(encoded, _ODD_ID) | is_long, checked_image_id)


def _checked_uris(cells: pa.Array, image_root: Path) -> _Checked:
    encoded = cells.cast(pa.large_binary())
    odd = matches(encoded, _ODD_PATH)
    if odd.any():
        odd &= ~matches(encoded, _WEB_ADDRESS)
        return _checked(encoded, odd, partial(checked_image_uri, image_root=image_root))
    return _checked(encoded, odd, str)


def _checked(cells: pa.Array, odd: Bool, check: Callable[[str], str]) -> _Checked:
    """Cells as strings, the odd ones checked; and the problem of each bad cell, by its row."""
    problems: dict[int, RejectRowError] = {}
    values: list[str] = []
    odd_rows = np.flatnonzero(odd)
    for row, text in zip(
        odd_rows.tolist(), texts_of_cells(cells.take(arrow_of(odd_rows))), strict=True
    ):
        try:
            values.append(check(text))
        except RejectRowError as error:
            problems[row] = error
            values.append("")
    return replaced(cells, odd, values).cast(pa.string()), problems


def _text_keys(
    rows: SourceRows, columns: Columns
) -> tuple[list[pa.Array], dict[int, RejectRowError]]:
    """The text keys of each text column, and the problem of each bad key, by its row."""
    num_rows = len(rows.lines)
    if columns.text_key is None:
        same = arrow_of(np.zeros(num_rows, np.int64))
        return [strings_of([key]).take(same) for key, _ in columns.texts], {}
    encoded = rows.cells[columns.text_key].cast(pa.large_binary()).dictionary_encode()
    keys: list[str] = []
    bad: dict[int, RejectRowError] = {}
    for index, value in enumerate(texts_of_cells(encoded.dictionary)):
        try:
            keys.append(checked_text_key(value))
        except RejectRowError as error:
            bad[index] = error
            keys.append("")
    indices = numpy_of(encoded.indices)
    problems = {
        row: bad[int(indices[row])]
        for row in (np.flatnonzero(np.isin(indices, list(bad))).tolist() if bad else ())
    }
    return [strings_of(keys).take(encoded.indices)], problems


def checked_image_id(value: str | None) -> str:
    """The id itself, if it can be part of a pair key."""
    if not value:
        raise RejectRowError("bad_image_id", "the image id is empty")
    if not (value.isascii() and value.isprintable()) and _CONTROL.search(value):
        shown = shown_text(value)
        detail = f"image id {shown} has control characters or is not UTF-8"
        raise RejectRowError("bad_image_id", detail)
    if len(value) * 4 > MAX_IMAGE_ID_BYTES and len(value.encode()) > MAX_IMAGE_ID_BYTES:
        detail = f"image id {shown_text(value)} is longer than {MAX_IMAGE_ID_BYTES} bytes"
        raise RejectRowError("bad_image_id", detail)
    return value


def checked_image_uri(value: str | None, image_root: Path) -> str:
    """The image's path relative to `image_root`, or its web address unchanged; "" for none.

    The uri of an image in a zip, tar, Arrow or Parquet file (`cit_curate.images.uri`) keeps its
    spelling, except that the file's path is made relative too.
    """
    if not value:
        return ""
    if _CONTROL.search(value):
        detail = f"image {shown_text(value)} has control characters or is not UTF-8"
        raise RejectRowError("bad_image_path", detail)
    if not _SCHEME.match(value):
        return _path_inside(value, image_root)
    if value.startswith(("http://", "https://")):
        return value
    root = remote_url(image_root)
    if root is not None and value.startswith(f"{root}/"):
        return _path_inside(value[len(root) + 1 :], image_root)
    try:
        uri = parse_image_uri(value)
    except ValueError as error:
        raise RejectRowError("bad_image_path", f"image {error}") from error
    if uri is None:
        detail = (
            f"image {shown_text(value)} is no path, http(s), zip, tar, arrow or parquet address"
        )
        raise RejectRowError("bad_image_path", detail)
    return f"{uri.scheme}://{_archive_inside(uri.path, image_root)}{uri.location}"


def _path_inside(value: str, image_root: Path) -> str:
    if value.startswith("/"):
        root = image_root.as_posix()
        written = posixpath.normpath(value)
        value = posixpath.relpath(written, root)
        if value.startswith("../"):
            # The root is where links lead to, and a table may name a file through the link.
            folder, name = posixpath.split(written)
            value = posixpath.relpath(posixpath.join(_real_folder(folder), name), root)
    elif "//" in value or "./" in value or value.endswith((".", "/")):
        value = posixpath.normpath(value)
    if value == ".." or value.startswith("../"):
        raise RejectRowError(
            "path_escapes",
            f"image {shown_text(value)} lies outside {image_root}; see --image-root",
        )
    return value


@lru_cache(maxsize=1024)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


@lru_cache(maxsize=1024)
def _archive_inside(path: str, image_root: Path) -> str:
    """`_path_inside` of an archive, cached because thousands of images share one."""
    return _path_inside(path, image_root)


@lru_cache(maxsize=1024)
def _text_key(value: str) -> str | None:
    try:
        return text_key_of(value)
    except ValueError:
        return None


def checked_text_key(value: str | None) -> str:
    """The text key for a value of the text key column."""
    key = _text_key(value) if value else None
    if key is None or len(key) > MAX_IMAGE_ID_BYTES:
        detail = f"text key {shown_text(value or '')} has no letter or digit, or too many"
        raise RejectRowError("bad_text_key", detail)
    return key
