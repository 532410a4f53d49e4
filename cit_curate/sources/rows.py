"""The one border between readers and the pool: rows as they were read, and rows with their pairs.

Both are Arrow columns. A reader gives `SourceRows`, whose cells `pairs.pairs_of` checks and cleans,
or it gives `RawPairs` at once, when it has a faster way of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cit_curate.arrow_numpy import arrow_of, numpy_of
from cit_curate.captions import replace_bad_text
from cit_curate.records import Int64
from cit_curate.sources.columns import Columns, column_kind

ROWS_PER_BATCH = 8192

# What real pools have plenty of (no text, the same pair twice) is counted, but is no damage.
MALFORMED = frozenset(
    {"bad_row", "column_count", "bad_image_id", "bad_text_key", "bad_image_path", "path_escapes"}
)

# No column of a user's has this name.
ROW = "__row__"
TEXT_FIELDS = (
    pa.field("text_key", pa.list_(pa.string())),
    pa.field("caption", pa.list_(pa.string())),
    pa.field("caption_hash", pa.list_(pa.uint64())),
    pa.field("text_fixed", pa.list_(pa.bool_())),
)
ROW_FIELDS = (
    pa.field(ROW, pa.int64()),
    pa.field("image_id", pa.string()),
    pa.field("image_uri", pa.string()),
    *TEXT_FIELDS,
)


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


def moved_reject(reject: Reject, num_lines: int, num_records: int) -> Reject:
    """A reject as counted from a place that many lines and records earlier."""
    return replace(reject, row=num_lines + reject.row, record=num_records + reject.record)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record that cannot be read as a row."""

    reason: str
    detail: str


@dataclass(frozen=True)
class SourceRows:
    """Some consecutive records of a source, column by column.

    Attributes:
        num_records: Records read, those in `rejects` included.
        records: Number of each row among the source's records, from 0.
        lines: Where a person finds each row (`Reject.row`).
        cells: `cells_of` the columns named in `Columns.names`.
        extra: The columns of `Columns.extra`.
        rejects: Records that could not be read as a row.
    """

    num_records: int
    records: Int64
    lines: Int64
    cells: dict[str, pa.Array]
    extra: dict[str, pa.Array] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)


@dataclass(frozen=True)
class RawPairs:
    """Some consecutive records of a source, as the pairs that they hold.

    Attributes:
        num_records: Records read.
        rows: `ROW_FIELDS`, then the extra columns: a row of the source and its texts, which may be
            none.
        rejects: Records that make no pair, in their order.
        num_lines: Lines read, where rows and records are counted from the start of a range; else 0.
    """

    num_records: int
    rows: pa.RecordBatch
    rejects: list[Reject]
    num_lines: int = 0

    @property
    def pairs(self) -> pa.Table:
        """The rows' pairs, one after the other."""
        return pairs_in(self.rows)


class IdLists(Protocol):
    """Lists of ids that choose the images of a source."""

    @property
    def num_ids(self) -> int:
        """Ids in all the lists."""

    @property
    def described(self) -> dict[str, Any]:
        """What `pool.json` says of them before anything is read."""

    def save(self, folder: Path) -> None:
        """Write what those who read ranges need into the folder of their blocks."""

    def found(self, num_rows: int, num_images: int) -> dict[str, Any]:
        """What `pool.json` says of them besides, once all rows are read."""


@dataclass(frozen=True, kw_only=True)
class SourceReader:
    """An opened source; `read` or else `read_range` reads it.

    Attributes:
        columns: Where its rows keep what; None when the reader gives pairs.
        extra_types: Arrow type of each extra column.
        read: Starts reading, from the first row.
        read_range: Reads what starts from one byte up to another as pairs, given the folder of the
            blocks.
        range_bytes: So many bytes at a time.
        row_is_image: All pairs of an image must come from one row: the first that has a text.
        read_lists: Reads the lists of ids that choose the images; None = every row counts.
    """

    columns: Columns | None
    extra_types: Mapping[str, pa.DataType]
    read: Callable[[], Iterator[SourceRows]] | None = None
    read_range: Callable[[Path, int, int], Iterator[RawPairs]] | None = None
    range_bytes: int = 0
    row_is_image: bool = False
    read_lists: Callable[[], IdLists] | None = None


def batches_of(
    records: Iterator[tuple[int, Sequence[str | None] | Problem]], columns: Columns
) -> Iterator[SourceRows]:
    """Rows of a reader that knows no columns, `ROWS_PER_BATCH` records at a time.

    Args:
        records: Where a person finds each record, and its cells, those of `Columns.names` and then
            those of `Columns.extra`.
        columns: The columns.
    """
    first = 0
    while batch := list(islice(records, ROWS_PER_BATCH)):
        rejects = [
            Reject(line, cells.reason, cells.detail, number)
            for number, (line, cells) in enumerate(batch, first)
            if isinstance(cells, Problem)
        ]
        numbers = np.arange(first, first + len(batch))
        if rejects:
            numbers = np.delete(numbers, [reject.record - first for reject in rejects])
            batch = [each for each in batch if not isinstance(each[1], Problem)]
        names = (*columns.names, *columns.extra)
        by_column = list(zip(*(cells for _, cells in batch), strict=True)) or [()] * len(names)
        num_names = len(columns.names)
        yield SourceRows(
            num_records=len(numbers) + len(rejects),
            records=numbers,
            lines=np.fromiter((line for line, _ in batch), np.int64, len(batch)),
            cells=dict(zip(columns.names, map(cells_of, by_column[:num_names]), strict=True)),
            extra=dict(zip(columns.extra, map(mended_texts, by_column[num_names:]), strict=True)),
            rejects=rejects,
        )
        first += len(numbers) + len(rejects)


def cells_of(texts: Sequence[str | None]) -> pa.Array:
    """Texts as cells: none is null, and None is empty.

    Returns:
        large_string, or large_binary where a text has lone surrogates (bytes that were not UTF-8):
        these are encoded like other letters (`surrogatepass`), so that no text is changed.
    """
    try:
        return pa.array(texts, pa.large_string()).fill_null("")
    except UnicodeEncodeError:
        encoded = [(text or "").encode("utf-8", "surrogatepass") for text in texts]
        return pa.array(encoded, pa.large_binary())


def texts_of_cells(cells: pa.Array) -> list[str]:
    """The texts that `cells_of` made cells of."""
    encoded = cells.cast(pa.large_binary()).to_pylist()
    return [cell.decode("utf-8", "surrogatepass") for cell in encoded]


def mended_texts(texts: Sequence[str | None]) -> pa.Array:
    """Texts as they are carried along, string: None is null, a lone surrogate is U+FFFD."""
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        mended = (None if text is None else replace_bad_text(text)[0] for text in texts)
        return pa.array(mended, pa.string())


def column_cells(values: pa.Array) -> pa.Array:
    """`cells_of` a column of text or whole numbers."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if column_kind(values.type) == "text" and (texts := _decoded(values)) is not None:
        return cells_of(texts)
    return values.cast(pa.large_string()).fill_null("")


def carried_column(values: pa.Array) -> pa.Array:
    """An extra column of a table as the pool carries it; text that is not UTF-8 is mended."""
    kind = carried_type(values.type)
    values = values.cast(kind)
    if pa.types.is_string(kind) and (texts := _decoded(values)) is not None:
        return mended_texts(texts)
    return values


def carried_type(kind: pa.DataType) -> pa.DataType:
    """The type that an extra column has in the pool; one integer does not always fit in another."""
    if column_kind(kind) == "text":
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _decoded(values: pa.Array) -> list[str | None] | None:
    """The texts where some are not UTF-8, such bytes as lone surrogates; None where all are."""
    # Arrow writes whatever bytes it was given as "string".
    values = values.cast(pa.large_string())
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        encoded = values.view(pa.large_binary()).to_pylist()
        return [each if each is None else each.decode(errors="surrogateescape") for each in encoded]
    return None


def pairs_in(rows: pa.RecordBatch) -> pa.Table:
    """The pairs of rows, in the order of the rows: their columns, with each text by itself."""
    texts = {text.name for text in TEXT_FIELDS}
    image_of = arrow_of(np.repeat(np.arange(rows.num_rows), num_texts(rows)))
    columns = {
        name: rows[name].flatten() if name in texts else rows[name].take(image_of)
        for name in rows.schema.names
    }
    return pa.table(columns)


def num_texts(rows: pa.RecordBatch) -> Int64:
    """int64 [rows]: how many texts each row has."""
    counts: Int64 = numpy_of(rows["text_key"].value_lengths()).astype(np.int64)
    return counts
