"""The pairs that rows hold: a column at a time, and one by one where a value is odd.

Patterns clear what the plain functions would leave as it is. The other values go through the plain
functions, to which the tests hold every result.
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
    replace_bad_text,
    without_tags_and_links,
)
from cit_curate.config import Cleaning
from cit_curate.images.uri import parse_image_uri
from cit_curate.records import Bool, Int64, text_key_of
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import ROW_FIELDS, RawPairs, Reject, SourceRows, texts_of_cells
from cit_curate.storage.remote import remote_url

MAX_IMAGE_ID_BYTES = 255

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

# Patterns of bytes that Arrow looks for in `rows.cells_of`.
_ODD_ID = r"^$|[^\x20-\x7e]"
_ODD_PATH = r"[^\x20-\x7e]|//|\./|^/|[./]$"
_WEB_ADDRESS = r"^https?://[\x20-\x7e]*$"
_NOT_UTF8 = r"\xed[\xa0-\xbf]"
# White space, a comma, markup, or an address: only such a text can say nothing. Markup may stand
# between the letters of an address.
_MAY_SAY_NOTHING = (
    r"^(?:[<,\s\x0b\x1c-\x1f]|h[t<]|w[w<]"
    r"|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\xaf]|\xe2\x81\x9f|\xe3\x80\x80)"
)


class RejectRowError(Exception):
    """A row that makes no pair; caught by `pairs_of`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def pairs_of(
    rows: SourceRows, columns: Columns, *, image_root: Path, clean: Cleaning = "none"
) -> RawPairs:
    """The pairs that rows hold, in row order; within a row in the order of `Columns.text`.

    Args:
        rows: Rows of one source.
        columns: Where the rows keep what.
        image_root: Relative image paths start here and must stay inside.
        clean: Named cleaning of every text.
    """
    num_rows = len(rows.lines)
    ids, bad_ids = _checked_ids(rows.cells[columns.image_id])
    images = rows.cells[columns.image] if columns.image else pa.array([""] * num_rows)
    uris, bad_uris = _checked_uris(images, image_root)
    keys, bad_keys = _text_keys(rows, columns)
    # What is wrong first counts.
    problems = {**bad_keys, **bad_uris, **bad_ids}
    is_good = np.ones(num_rows, np.bool_)
    is_good[list(problems)] = False
    names = [columns.caption] if columns.caption else columns.text
    texts = _texts([rows.cells[name] for name in names], keys, is_good, clean)
    counts = np.bincount(texts.row, minlength=num_rows)
    for place in np.flatnonzero(is_good & (counts == 0)).tolist():
        what = ", ".join(each[place].as_py() for each in keys)
        detail = f"image {ids[place].as_py()}: no text in {what}"
        problems[place] = RejectRowError("empty_text", detail)
    rejects = rows.rejects + [
        Reject(int(rows.lines[place]), found.reason, found.detail, int(rows.records[place]))
        for place, found in problems.items()
    ]
    rejects.sort(key=lambda reject: reject.record)
    kept = counts > 0
    bounds = arrow_of(np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int32))
    of_rows = [arrow_of(rows.lines), ids, uris]
    extra = list(rows.extra.values())
    if not kept.all():
        mask = arrow_of(kept)
        of_rows = [column.filter(mask) for column in of_rows]
        extra = [column.filter(mask) for column in extra]
    of_texts = [pa.ListArray.from_arrays(bounds, column) for column in texts.columns]
    fields = [pa.field(name, column.type) for name, column in rows.extra.items()]
    schema = pa.schema([*ROW_FIELDS, *fields])
    batch = pa.RecordBatch.from_arrays([*of_rows, *of_texts, *extra], schema=schema)
    return RawPairs(rows.num_records, batch, rejects)


class _Texts(NamedTuple):
    """The texts of some rows: int64, the row of each, and their columns as in `TEXT_FIELDS`."""

    row: Int64
    columns: list[pa.Array]


def _texts(
    columns: Sequence[pa.Array], keys: Sequence[pa.Array], is_good: Bool, clean: Cleaning
) -> _Texts:
    """The cleaned texts of some columns that say something, row by row.

    Args:
        columns: The cells of each column with texts.
        keys: The text key of each cell, column by column.
        is_good: bool [rows]: rows that count.
        clean: Named cleaning.
    """
    num_rows, num_columns = len(is_good), len(columns)
    every_key = pa.concat_arrays(keys)
    cells = pa.concat_arrays([column.cast(pa.large_binary()) for column in columns])
    lengths = numpy_of(pc.binary_length(cells))
    keep = (lengths > 0) & np.tile(is_good, num_columns)
    if clean == "none":
        odd = (lengths > MAX_CAPTION_BYTES) | _matches(cells, _MAY_SAY_NOTHING)
        if any(pa.types.is_large_binary(column.type) for column in columns):
            odd |= _matches(cells, _NOT_UTF8)
        odd &= keep
    else:
        odd = keep.copy()
    fixed = np.zeros(len(cells), np.bool_)
    places = np.flatnonzero(odd)
    taken = arrow_of(places)
    cleaned = [
        cleaned_text(cell, key, cleaner(clean))
        for cell, key in zip(
            texts_of_cells(cells.take(taken)), every_key.take(taken).to_pylist(), strict=True
        )
    ]
    keep[places] = [text is not None for text, _ in cleaned]
    fixed[places] = [was_fixed for _, was_fixed in cleaned]
    cells = _replaced(cells, odd, [text or "" for text, _ in cleaned])
    row_by_row = np.arange(len(cells)).reshape(num_columns, num_rows).T.ravel()
    order = row_by_row[keep[row_by_row]]
    taken = arrow_of(order)
    captions = cells.take(taken)
    hashes = np.frombuffer(b"".join(digests(captions.to_pylist())), "<u8")
    values = [every_key.take(taken), captions.cast(pa.string()), hashes, fixed[order]]
    return _Texts(order % num_rows, [*values[:2], *map(arrow_of, values[2:])])


def cleaned_text(cell: str, text_key: str, clean: Callable[[str], str]) -> tuple[str | None, bool]:
    """A text as the pool has it, None if it says nothing; and whether it was mended or cut."""
    text, was_bad = replace_bad_text(cell)
    text, was_cut = cut_at_bytes(clean(text))
    return (None if _says_nothing(text, text_key) else text), was_bad or was_cut


def digests(texts: Sequence[bytes]) -> Iterator[bytes]:
    """`PAIR_FIELDS`' caption hash of each text, 8 bytes."""
    # A copy of one that is ready takes half the time of reading the arguments anew.
    copied = blake2b(digest_size=8).copy
    for text in texts:
        hashed = copied()
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
    """Cells as strings, the odd ones checked; and by its place, what is wrong with which."""
    problems: dict[int, RejectRowError] = {}
    values: list[str] = []
    places = np.flatnonzero(odd)
    for place, text in zip(
        places.tolist(), texts_of_cells(cells.take(arrow_of(places))), strict=True
    ):
        try:
            values.append(check(text))
        except RejectRowError as error:
            problems[place] = error
            values.append("")
    return _replaced(cells, odd, values).cast(pa.string()), problems


def _text_keys(
    rows: SourceRows, columns: Columns
) -> tuple[list[pa.Array], dict[int, RejectRowError]]:
    """The text keys of each column with texts, and by its row, which of them is bad."""
    num_rows = len(rows.lines)
    if columns.text_key is None:
        same = arrow_of(np.zeros(num_rows, np.int64))
        return [strings_of([key]).take(same) for key, _ in columns.texts], {}
    different = rows.cells[columns.text_key].cast(pa.large_binary()).dictionary_encode()
    found: list[str] = []
    bad: dict[int, RejectRowError] = {}
    for place, value in enumerate(texts_of_cells(different.dictionary)):
        try:
            found.append(checked_text_key(value))
        except RejectRowError as error:
            bad[place] = error
            found.append("")
    places = numpy_of(different.indices)
    problems = {
        row: bad[int(places[row])]
        for row in (np.flatnonzero(np.isin(places, list(bad))).tolist() if bad else ())
    }
    return [strings_of(found).take(different.indices)], problems


def _matches(cells: pa.Array, pattern: str) -> Bool:
    """Whether a pattern of bytes is in each cell: bool [cells]."""
    return numpy_of(pc.match_substring_regex(cells, pattern))


def _replaced(cells: pa.Array, places: Bool, texts: Sequence[str]) -> pa.Array:
    """The cells, large_binary, with other texts at some places."""
    if not texts:
        return cells
    encoded = pa.array([text.encode() for text in texts], pa.large_binary())
    return pc.replace_with_mask(cells, arrow_of(places), encoded)


def checked_image_id(value: str | None) -> str:
    """The id itself, when it can be part of a pair key."""
    if not value:
        raise RejectRowError("bad_image_id", "the image id is empty")
    if not (value.isascii() and value.isprintable()) and _CONTROL.search(value):
        shown = _shown(value)
        detail = f"image id {shown} has control characters or is not UTF-8"
        raise RejectRowError("bad_image_id", detail)
    if len(value) * 4 > MAX_IMAGE_ID_BYTES and len(value.encode()) > MAX_IMAGE_ID_BYTES:
        detail = f"image id {_shown(value)} is longer than {MAX_IMAGE_ID_BYTES} bytes"
        raise RejectRowError("bad_image_id", detail)
    return value


def checked_image_uri(value: str | None, image_root: Path) -> str:
    """The image's place relative to `image_root`; a web address as it is; "" for none.

    A place in a zip, tar, Arrow or Parquet file (`cit_curate.images.uri`) keeps its spelling; the
    path in it is treated like any other.
    """
    if not value:
        return ""
    if _CONTROL.search(value):
        detail = f"image {_shown(value)} has control characters or is not UTF-8"
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
        detail = f"image {_shown(value)} is no path, http(s), zip, tar, arrow or parquet address"
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
            f"image {_shown(value)} lies outside {image_root}; see --image-root",
        )
    return value


@lru_cache(maxsize=1024)
def _archive_inside(path: str, image_root: Path) -> str:
    """`_path_inside` of an archive; thousands of images name the same one."""
    return _path_inside(path, image_root)


@lru_cache(maxsize=1024)
def _text_key(value: str) -> str | None:
    try:
        return text_key_of(value)
    except ValueError:
        return None


def checked_text_key(value: str | None) -> str:
    """A column's value as a text key."""
    key = _text_key(value) if value else None
    if key is None or len(key) > MAX_IMAGE_ID_BYTES:
        detail = f"text key {_shown(value or '')} has no letter or digit, or too many"
        raise RejectRowError("bad_text_key", detail)
    return key


def _says_nothing(text: str, key: str) -> bool:
    """True for a blank text, and for one of markup and addresses alone; beside others they stay."""
    if is_blank(text, key):
        return True
    # Only what begins so can be one: the others, nine in ten, are not searched.
    may_be = text[0] in "<hw," or text[0].isspace()
    return may_be and is_blank(without_tags_and_links(text), key)


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 80 else value[:80] + "…")
