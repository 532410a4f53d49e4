"""The pairs of source rows: checked and cleaned a column at a time, odd values one by one.

Byte patterns find the values that the plain functions would leave unchanged. Only the others go
through the plain functions. The tests compare every result with theirs.
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, numpy_of, strings_of
from cit_curate.captions import (
    MAX_CAPTION_BYTES,
    cleaner,
    cut_at_bytes,
    is_blank,
    is_unseen,
    replace_bad_text,
    shown_text,
    without_tags_and_links,
)
from cit_curate.config import Cleaning
from cit_curate.images.uri import parse_image_uri
from cit_curate.records import Bool, Int64, text_key_of
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
_NOT_UTF8 = r"\xed[\xa0-\xbf]"
# Only a text that starts with a comma, markup, a web address or something unseen can be empty.
# Markup may stand between the letters of an address.
_MAY_BE_EMPTY = (
    r"^(?:[<,\s\x00-\x1f\x7f]|h[t<]|w[w<]"
    r"|\xc2[\x80-\xa0\xad]|\xcd\x8f|\xd8\x9c|\xe1\x85[\x9f\xa0]|\xe1\x9a\x80|\xe1\x9e[\xb4\xb5]"
    r"|\xe1\xa0[\x8b-\x8f]|\xe2\x80[\x80-\xaf]|\xe2\x81[\x9f-\xaf]|\xe2\xa0\x80|\xe3\x80\x80"
    r"|\xe3\x85\xa4|\xef\xb8[\x80-\x8f]|\xef\xbb\xbf|\xef\xbe\xa0|\xef\xbf[\xb9-\xbb]|\xf3\xa0)"
)


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

    Args:
        rows: Rows of one source.
        columns: The columns to read.
        image_root: The folder that relative image paths start from and must stay inside.
        clean: The named cleaning of every text.
        source: The source's name in the pool, for the ids of images that have none.
    """
    num_rows = len(rows.lines)
    if columns.image_id is None:
        own_ids = cells_of([f"{source}/{record:08d}" for record in rows.records.tolist()])
    else:
        own_ids = rows.cells[columns.image_id]
    ids, bad_ids = _checked_ids(own_ids)
    images = rows.cells[columns.image] if columns.image else pa.array([""] * num_rows)
    uris, bad_uris = _checked_uris(images, image_root)
    keys, bad_keys = _text_keys(rows, columns)
    # A row has one reason: a bad id goes before a bad path, and that before a bad text key.
    problems = {**bad_keys, **bad_uris, **bad_ids}
    is_good = np.ones(num_rows, np.bool_)
    is_good[list(problems)] = False
    names = [columns.caption] if columns.caption else columns.text
    texts = _texts([rows.cells[name] for name in names], keys, is_good, clean)
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
    text_columns = [pa.ListArray.from_arrays(bounds, column) for column in texts.columns]
    fields = [pa.field(name, column.type) for name, column in rows.extra.items()]
    schema = pa.schema([*ROW_FIELDS, *fields])
    batch = pa.RecordBatch.from_arrays([*row_columns, *text_columns, *extra], schema=schema)
    log = ReadLog([*rows.log.notes, *_fixed_notes(texts, rows)], rows.log.counts)
    return RawPairs(rows.num_records, batch, rejects, log=log)


def _fixed_notes(texts: "_Texts", rows: SourceRows) -> Iterator[Note]:
    """A note on each text that was cut or had bytes that are no text, with what it was."""
    for row, raw in texts.fixed:
        kind = "mended_text" if replace_bad_text(raw)[1] else "cut_text"
        yield Note(int(rows.lines[row]), kind, raw[:MAX_NOTED_CHARS])


class _Texts(NamedTuple):
    """The texts of some rows: int64, the row of each text, and the columns of `TEXT_FIELDS`.

    `fixed` has the row of each text that was mended or cut, and what it was.
    """

    row: Int64
    columns: list[pa.Array]
    fixed: list[tuple[int, str]]


def _texts(
    columns: Sequence[pa.Array], keys: Sequence[pa.Array], is_good: Bool, clean: Cleaning
) -> _Texts:
    """The cleaned texts of some columns, row by row, without the empty ones.

    Args:
        columns: The cells of each text column.
        keys: The text key of each cell, column by column.
        is_good: bool [rows], the rows to read.
        clean: The named cleaning.
    """
    num_rows, num_columns = len(is_good), len(columns)
    every_key = pa.concat_arrays(keys)
    cells = pa.concat_arrays([column.cast(pa.large_binary()) for column in columns])
    lengths = numpy_of(pc.binary_length(cells))
    keep = (lengths > 0) & np.tile(is_good, num_columns)
    if clean == "none":
        odd = (lengths > MAX_CAPTION_BYTES) | _matches(cells, _MAY_BE_EMPTY)
        if any(pa.types.is_large_binary(column.type) for column in columns):
            odd |= _matches(cells, _NOT_UTF8)
        odd &= keep
    else:
        odd = keep.copy()
    fixed = np.zeros(len(cells), np.bool_)
    indices = np.flatnonzero(odd)
    taken = arrow_of(indices)
    raw = texts_of_cells(cells.take(taken))
    cleaned = [
        seen_text(cell, key, cleaner(clean))
        for cell, key in zip(raw, every_key.take(taken).to_pylist(), strict=True)
    ]
    keep[indices] = [text is not None for text, _ in cleaned]
    fixed[indices] = [was_fixed for _, was_fixed in cleaned]
    cells = _replaced(cells, odd, [text or "" for text, _ in cleaned])
    row_by_row = np.arange(len(cells)).reshape(num_columns, num_rows).T.ravel()
    order = row_by_row[keep[row_by_row]]
    taken = arrow_of(order)
    captions = cells.take(taken)
    hashes = np.frombuffer(b"".join(digests(captions.to_pylist())), "<u8")
    values = [every_key.take(taken), captions.cast(pa.string()), hashes, fixed[order]]
    noted = [
        (int(index) % num_rows, cell)
        for index, cell, (text, was_fixed) in zip(indices, raw, cleaned, strict=True)
        if was_fixed and text is not None
    ]
    return _Texts(order % num_rows, [*values[:2], *map(arrow_of, values[2:])], noted)


def cleaned_text(cell: str, text_key: str, clean: Callable[[str], str]) -> tuple[str | None, bool]:
    """A text as the pool stores it, None if it is empty; and whether it was mended or cut."""
    text, was_bad = replace_bad_text(cell)
    text, was_cut = cut_at_bytes(clean(text))
    return (None if _is_empty(text, text_key) else text), was_bad or was_cut


def seen_text(cell: str, text_key: str, clean: Callable[[str], str]) -> tuple[str | None, bool]:
    """As `cleaned_text`; a text without anything that is seen counts as empty too."""
    text, was_fixed = cleaned_text(cell, text_key, clean)
    return (None if text is None or is_unseen(text) else text), was_fixed


def digests(texts: Sequence[bytes]) -> Iterator[bytes]:
    """The caption hash of each text, as in `PAIR_FIELDS`: 8 bytes."""
    # Copying a new hash takes half the time of making one from its arguments.
    new_hash = blake2b(digest_size=8).copy
    for text in texts:
        hashed = new_hash()
        hashed.update(text)
        yield hashed.digest()


_Checked = tuple[pa.Array, dict[int, RejectRowError]]


def _checked_ids(cells: pa.Array) -> _Checked:
    encoded = cells.cast(pa.large_binary())
    is_long = numpy_of(pc.binary_length(encoded)) > MAX_IMAGE_ID_BYTES
    return _checked(encoded, _matches(encoded, _ODD_ID) | is_long, checked_image_id)


def _checked_uris(cells: pa.Array, image_root: Path) -> _Checked:
    encoded = cells.cast(pa.large_binary())
    odd = _matches(encoded, _ODD_PATH)
    if odd.any():
        odd &= ~_matches(encoded, _WEB_ADDRESS)
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
    return _replaced(cells, odd, values).cast(pa.string()), problems


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


def _matches(cells: pa.Array, pattern: str) -> Bool:
    """Whether each cell contains a byte pattern: bool [cells]."""
    return numpy_of(pc.match_substring_regex(cells, pattern))


def _replaced(cells: pa.Array, mask: Bool, texts: Sequence[str]) -> pa.Array:
    """The cells, large_binary, replaced by the texts where `mask` is true."""
    if not texts:
        return cells
    encoded = pa.array([text.encode() for text in texts], pa.large_binary())
    return pc.replace_with_mask(cells, arrow_of(mask), encoded)


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
        value = posixpath.relpath(posixpath.normpath(value), image_root.as_posix())
    elif "//" in value or "./" in value or value.endswith((".", "/")):
        value = posixpath.normpath(value)
    if value == ".." or value.startswith("../"):
        raise RejectRowError(
            "path_escapes",
            f"image {shown_text(value)} lies outside {image_root}; see --image-root",
        )
    return value


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


def _is_empty(text: str, key: str) -> bool:
    """True for a blank text, and for one that consists of markup and web addresses only."""
    if is_blank(text, key):
        return True
    # Such a text starts with one of these. Nine in ten texts do not, and are not searched.
    may_be_empty = text[0] in "<hw," or text[0].isspace()
    return may_be_empty and is_blank(without_tags_and_links(text), key)
