"""The one border between readers and the pool: rows of a source, and the pairs they become."""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from cit_curate.captions import (
    cut_at_bytes,
    is_blank,
    replace_bad_text,
    without_tags_and_links,
)
from cit_curate.images.uri import parse_image_uri
from cit_curate.records import text_key_of
from cit_curate.sources.columns import Columns
from cit_curate.storage.remote import remote_url

ROWS_PER_BATCH = 8192
MAX_IMAGE_ID_BYTES = 255

# What real pools have plenty of (no text, the same pair twice) is counted, but is no damage.
MALFORMED = frozenset(
    {"bad_row", "column_count", "bad_image_id", "bad_text_key", "bad_image_path", "path_escapes"}
)

RAW_FIELDS = (
    pa.field("source", pa.string()),
    pa.field("row", pa.int64()),
    pa.field("image_id", pa.string()),
    pa.field("text_key", pa.string()),
    pa.field("caption", pa.string()),
    pa.field("image_uri", pa.string()),
    pa.field("caption_hash", pa.uint64()),
    pa.field("text_fixed", pa.bool_()),
)

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Reject:
    """Something that was dropped, and why.

    Attributes:
        row: Line of a text file, row of a Parquet file, number of an image of a folder; from 1.
        reason: One word of a closed list, such as `column_count`.
        detail: What a person needs to find and mend it.
        record: The same place as a count of records from 0; consecutive ones are "in a row".
    """

    row: int
    reason: str
    detail: str
    record: int


@dataclass(frozen=True)
class SourceRows:
    """Some consecutive records of a source, column by column.

    Attributes:
        num_records: Records read, those in `rejects` included.
        records: Number of each row among the source's records, from 0.
        lines: Where a person finds each row (`Reject.row`).
        values: Text of the columns named in `Columns.names`; None is empty, a byte that was not
            UTF-8 is a lone surrogate.
        extra: The columns of `Columns.extra`.
        rejects: Records that could not be read as a row.
    """

    num_records: int
    records: list[int]
    lines: list[int]
    values: dict[str, list[str | None]]
    extra: dict[str, pa.Array] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)


@dataclass(frozen=True)
class SourceReader:
    """An opened source.

    Attributes:
        columns: Where its rows keep what.
        extra_types: Arrow type of each extra column.
        read: Starts reading, from the first row.
    """

    columns: Columns
    extra_types: Mapping[str, pa.DataType]
    read: Callable[[], Iterator[SourceRows]]


@dataclass(frozen=True)
class RawPairs:
    """The pairs of some source rows: `RAW_FIELDS`, then the extra columns."""

    num_records: int
    pairs: pa.Table
    rejects: list[Reject]


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
    source: str,
    image_root: Path,
    clean: Callable[[str], str],
) -> RawPairs:
    """The pairs that rows hold, in row order; within a row in the order of `Columns.text`.

    Args:
        rows: Rows of one source.
        columns: Where the rows keep what.
        source: The source's name in the pool.
        image_root: Relative image paths start here and must stay inside.
        clean: Applied to every text.
    """
    rejects = list(rows.rejects)
    taken: list[int] = []
    image_ids: list[str] = []
    keys: list[str] = []
    captions: list[str] = []
    uris: list[str] = []
    hashes: list[bytes] = []
    fixed: list[bool] = []
    ids = rows.values[columns.image_id]
    images = rows.values[columns.image] if columns.image else None
    long_keys = rows.values[columns.text_key] if columns.text_key else None
    wide = [(key, rows.values[name]) for key, name in columns.texts]
    long_captions = rows.values[columns.caption] if columns.caption else []
    for place, line in enumerate(rows.lines):
        try:
            image_id = checked_image_id(ids[place])
            uri = checked_image_uri(images[place], image_root) if images else ""
            if long_keys is None:
                texts = [(key, cells[place]) for key, cells in wide]
            else:
                texts = [(_checked_text_key(long_keys[place]), long_captions[place])]
            count = len(taken)
            for key, cell in texts:
                if not cell:
                    continue
                text, was_bad = replace_bad_text(cell)
                text, was_cut = cut_at_bytes(clean(text))
                if _says_nothing(text, key):
                    continue
                taken.append(place)
                image_ids.append(image_id)
                keys.append(key)
                captions.append(text)
                uris.append(uri)
                hashes.append(blake2b(text.encode("utf-8"), digest_size=8).digest())
                fixed.append(was_bad or was_cut)
            if len(taken) == count:
                what = ", ".join(key for key, _ in texts)
                raise RejectRowError("empty_text", f"image {image_id}: no text in {what}")
        except RejectRowError as reject:
            rejects.append(Reject(line, reject.reason, reject.detail, rows.records[place]))
    table = pa.table(
        [
            pa.array([source]).take(pa.array(np.zeros(len(taken), np.int64))),
            pa.array([rows.lines[place] for place in taken], pa.int64()),
            pa.array(image_ids, pa.string()),
            pa.array(keys, pa.string()),
            pa.array(captions, pa.string()),
            pa.array(uris, pa.string()),
            pa.array(np.frombuffer(b"".join(hashes), "<u8"), pa.uint64()),
            pa.array(fixed, pa.bool_()),
        ],
        schema=pa.schema(RAW_FIELDS),
    )
    places = pa.array(taken, pa.int64())
    for name, values in rows.extra.items():
        table = table.append_column(name, values.take(places))
    rejects.sort(key=lambda reject: reject.record)
    return RawPairs(rows.num_records, table, rejects)


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


def _checked_text_key(value: str | None) -> str:
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
