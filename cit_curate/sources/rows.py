"""The interface between readers and the pool: rows of a source, and their pairs.

Both consist of Arrow columns. A reader yields `SourceRows`, whose cells `pairs.pairs_of` checks and
cleans, or it yields `RawPairs` where it has a faster way of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, numpy_of
from cit_curate.captions import replace_bad_text
from cit_curate.carried import NotCarriedError, carried
from cit_curate.errors import ConfigError
from cit_curate.records import Bool, Int64
from cit_curate.sources.columns import Columns, column_kind, is_list

ROWS_PER_BATCH = 8192

# Reasons that count as damage. Empty texts and repeated pairs do not: real pools have many of them.
MALFORMED = frozenset(
    {"bad_row", "column_count", "bad_image_id", "bad_text_key", "bad_image_path", "path_escapes"}
)

Cell = str | None | Sequence[str | None]
"""The text of a cell, or its list of texts; None for none."""

# A name that no column of a user has.
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
    """A record or pair that was dropped, and why.

    Attributes:
        row: The line of a text file, row of a Parquet file or image of a folder, counted from 1.
        reason: One word of a closed list, such as `column_count`.
        detail: The facts that a person needs to find and fix the record.
        record: The number of the record in its source, from 0. Consecutive ones are "in a row".
        num_lines: The lines of the record, in a text file.
        is_tolerated: Whether it is no damage although its reason is one, such as a link in a folder
            that leads outside.
    """

    row: int
    reason: str
    detail: str
    record: int
    num_lines: int = 1
    is_tolerated: bool = False

    @property
    def is_malformed(self) -> bool:
        """Whether it counts against the reject limit."""
        return self.reason in MALFORMED and not self.is_tolerated


def moved_reject(reject: Reject, num_lines: int, num_records: int) -> Reject:
    """A reject, counted from a start that is so many lines and records earlier."""
    return replace(reject, row=num_lines + reject.row, record=num_records + reject.record)


@dataclass(frozen=True)
class Note:
    """Something about a record that was read all the same, such as a mended quote.

    Attributes:
        row: See `Reject`.
        kind: One word of a closed list (`pool.build.summary`).
        detail: The facts for a person.
        num_lines: The lines of the record, in a text file.
    """

    row: int
    kind: str
    detail: str
    num_lines: int = 1


@dataclass
class ReadLog:
    """What a reader has to tell beside its rows; `batches_of` takes it with each batch.

    Attributes:
        notes: Notes on records.
        counts: Numbers of things that are no records, such as `blank_lines`; and of all `lines`.
    """

    notes: list[Note] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def taken(self) -> "ReadLog":
        """What was logged since the last call."""
        log = ReadLog(self.notes, self.counts)
        self.notes, self.counts = [], Counter()
        return log


@dataclass(frozen=True)
class Problem:
    """The reason and detail of a reject, for a record that cannot be read as a row."""

    reason: str
    detail: str
    num_lines: int = 1
    is_tolerated: bool = False


@dataclass(frozen=True)
class SourceRows:
    """Some consecutive records of a source, column by column.

    Attributes:
        num_records: The number of records read, including those in `rejects`.
        records: int64 [rows], the number of each row's record in the source, from 0.
        lines: int64 [rows], the number of each row for people, as in `Reject.row`.
        cells: The cells (`cells_of`) of each column in `Columns.names`. A column of texts may
            consist of lists instead: large_list of such cells.
        names: The cells of names, as of a file, that are the image ids of rows; "" for a row that
            has an id of its own. None = all have.
        extra: The columns of `Columns.extra`.
        rejects: The records that could not be read as a row.
        log: What else there is to tell.
    """

    num_records: int
    records: Int64
    lines: Int64
    cells: dict[str, pa.Array]
    names: pa.Array | None = None
    extra: dict[str, pa.Array] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    log: ReadLog = field(default_factory=ReadLog)


@dataclass(frozen=True)
class RawPairs:
    """The pairs of some consecutive records of a source.

    Attributes:
        num_records: The number of records read.
        rows: `ROW_FIELDS`, then the extra columns: each row of the source with its texts, possibly
            none, or several of one key.
        rejects: The records that make no pair, in order.
        num_lines: The number of lines read, where rows and records are counted from the start of a
            range; else 0.
        log: What else there is to tell.
        is_named: bool [rows], whether the image id is a name, as of a file; None = none is.
        repeats_key: Whether a row has several texts of one key.
    """

    num_records: int
    rows: pa.RecordBatch
    rejects: list[Reject]
    num_lines: int = 0
    log: ReadLog = field(default_factory=ReadLog)
    is_named: Bool | None = None
    repeats_key: bool = False

    @property
    def pairs(self) -> pa.Table:
        """The pairs of the rows, one after the other."""
        return pairs_in(self.rows)


class IdLists(Protocol):
    """Lists of image ids that select the images of a source."""

    @property
    def num_ids(self) -> int:
        """The number of ids in all lists."""

    @property
    def described(self) -> dict[str, Any]:
        """The entries of `pool.json` that are known before any row is read."""

    def save(self, folder: Path) -> None:
        """Write the files that `SourceReader.read_range` needs into the folder of the blocks."""

    def found(self, num_rows: int, num_images: int) -> dict[str, Any]:
        """The further entries of `pool.json`, known once all rows are read."""


@dataclass(frozen=True, kw_only=True)
class SourceReader:
    """An opened source, which has either `read` or `read_range`.

    Attributes:
        columns: The columns to read; None for a reader that yields pairs.
        extra_types: The Arrow type of each extra column.
        read: A function that reads all rows, from the first one.
        read_range: A function that reads the pairs of a range of bytes. Its arguments are the
            folder of the blocks, the first byte and the byte after the last.
        range_bytes: The bytes of one range.
        row_is_image: Whether all pairs of an image must come from one row, the first with a text.
        read_lists: A function that reads the id lists that select images; None = every row counts.
        notes: A sentence for each guess about the source, with the option that says otherwise.
    """

    columns: Columns | None
    extra_types: Mapping[str, pa.DataType]
    read: Callable[[], Iterator[SourceRows]] | None = None
    read_range: Callable[[Path, int, int], Iterator[RawPairs]] | None = None
    range_bytes: int = 0
    row_is_image: bool = False
    read_lists: Callable[[], IdLists] | None = None
    notes: tuple[str, ...] = ()


def batches_of(
    records: Iterator[tuple[int, Sequence[Cell] | Problem]],
    columns: Columns,
    log: ReadLog | None = None,
    *,
    has_names: bool = False,
) -> Iterator[SourceRows]:
    """The rows of a reader that reads record by record, `ROWS_PER_BATCH` records at a time.

    Args:
        records: The number of each record as in `Reject.row`, and its cells: those of
            `Columns.names`, then those of `Columns.extra`, then its name if they have names.
        columns: The columns of the cells.
        log: The log that the reader writes while it reads.
        has_names: Whether the last cell of each record is one of `SourceRows.names`.
    """
    first = 0
    log = log or ReadLog()
    while True:
        batch = list(islice(records, ROWS_PER_BATCH))
        # What is logged behind the last record comes with a batch of none.
        if not batch and not (log.counts or log.notes):
            return
        rejects = [
            Reject(line, cells.reason, cells.detail, number, cells.num_lines, cells.is_tolerated)
            for number, (line, cells) in enumerate(batch, first)
            if isinstance(cells, Problem)
        ]
        numbers = np.arange(first, first + len(batch))
        if rejects:
            numbers = np.delete(numbers, [reject.record - first for reject in rejects])
            batch = [record for record in batch if not isinstance(record[1], Problem)]
        num_columns = len(columns.names) + len(columns.extra) + has_names
        by_column: list[tuple[Any, ...]] = list(zip(*(cells for _, cells in batch), strict=True))
        by_column = by_column or [()] * num_columns
        names = cells_of(by_column.pop()) if has_names else None
        num_names = len(columns.names)
        yield SourceRows(
            num_records=len(numbers) + len(rejects),
            records=numbers,
            lines=np.fromiter((line for line, _ in batch), np.int64, len(batch)),
            cells=dict(zip(columns.names, map(_cells, by_column[:num_names]), strict=True)),
            names=names,
            extra=dict(zip(columns.extra, map(mended_texts, by_column[num_names:]), strict=True)),
            rejects=rejects,
            log=log.taken(),
        )
        first += len(numbers) + len(rejects)


def _cells(values: Sequence[Cell]) -> pa.Array:
    """The cells of a column: `cells_of` its texts, or of each row's list of texts if it has any."""
    if list not in set(map(type, values)):
        return cells_of(cast(Sequence[str | None], values))
    lists = [value if isinstance(value, list) else [cast(str | None, value)] for value in values]
    return lists_of(cells_of(list(chain.from_iterable(lists))), list(map(len, lists)))


def lists_of(cells: pa.Array, lengths: Sequence[int] | Int64) -> pa.Array:
    """Consecutive cells as large_list, of which each row has so many."""
    ends = np.cumsum(np.concatenate([[0], lengths]), dtype=np.int64)
    return pa.LargeListArray.from_arrays(arrow_of(ends), cells)


def cells_of(texts: Sequence[str | None]) -> pa.Array:
    """Texts as cells without nulls; None becomes the empty text.

    Returns:
        large_string, or large_binary where a text has lone surrogates (bytes that were not UTF-8).
        Those are encoded like other letters (`surrogatepass`), so that no text changes.
    """
    try:
        return pa.array(texts, pa.large_string()).fill_null("")
    except UnicodeEncodeError:
        encoded = [(text or "").encode("utf-8", "surrogatepass") for text in texts]
        return pa.array(encoded, pa.large_binary())


def texts_of_cells(cells: pa.Array) -> list[str]:
    """The texts of cells: the inverse of `cells_of`."""
    encoded = cells.cast(pa.large_binary()).to_pylist()
    return [cell.decode("utf-8", "surrogatepass") for cell in encoded]


def mended_texts(texts: Sequence[str | None]) -> pa.Array:
    """The texts of an extra column, string: None is null, a lone surrogate becomes U+FFFD."""
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        mended = (None if text is None else replace_bad_text(text)[0] for text in texts)
        return pa.array(mended, pa.string())


def column_cells(values: pa.Array) -> pa.Array:
    """The cells (`cells_of`) of a column of text or whole numbers, or of lists of text."""
    if is_list(values.type):
        lengths = np.bincount(numpy_of(pc.list_parent_indices(values)), minlength=len(values))
        return lists_of(column_cells(pc.list_flatten(values)), lengths)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if column_kind(values.type) == "text" and (texts := _decoded(values)) is not None:
        return cells_of(texts)
    return values.cast(pa.large_string()).fill_null("")


def carried_column(values: pa.Array, name: str) -> pa.Array:
    """An extra column of a table as the pool stores it; text that is not UTF-8 is mended.

    Raises:
        ConfigError: A value cannot be stored.
    """
    try:
        values = carried(values)
    except NotCarriedError as error:
        raise ConfigError(f"--extra {name}: {error}; leave it out, or convert it first") from error
    if pa.types.is_string(values.type) and (texts := _decoded(values)) is not None:
        return mended_texts(texts)
    return values


def _decoded(values: pa.Array) -> list[str | None] | None:
    """The texts of a column, bytes that are not UTF-8 as lone surrogates; None if all are UTF-8."""
    # Arrow does not check the bytes that it writes as "string".
    values = values.cast(pa.large_string())
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        encoded = values.view(pa.large_binary()).to_pylist()
        return [cell if cell is None else cell.decode(errors="surrogateescape") for cell in encoded]
    return None


def pairs_in(rows: pa.RecordBatch) -> pa.Table:
    """The pairs of rows, in row order: the same columns, with one text in each row."""
    texts = {text.name for text in TEXT_FIELDS}
    image_of = arrow_of(np.repeat(np.arange(rows.num_rows), num_texts(rows)))
    columns = {
        name: rows[name].flatten() if name in texts else rows[name].take(image_of)
        for name in rows.schema.names
    }
    return pa.table(columns)


def num_texts(rows: pa.RecordBatch) -> Int64:
    """The number of texts of each row: int64 [rows]."""
    counts: Int64 = numpy_of(rows["text_key"].value_lengths()).astype(np.int64)
    return counts
