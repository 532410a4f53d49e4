"""Blocks: consecutive records of one source, in a file that any process may write and read.

A block is an Arrow file followed by its SHA-256; it is complete or absent. Its batches are the rows
as they were read (`rows.RawPairs`). The last batch holds the rejects, and `Block` as its metadata.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, numpy_of, repeated, strings_of
from cit_curate.errors import BadInputError, DamagedError
from cit_curate.pool.build.changes import Changes
from cit_curate.pool.build.malformed import Counted, count_malformed
from cit_curate.pool.format import REJECT_SCHEMA, names_image_file
from cit_curate.records import Bool, Int64
from cit_curate.sources.rows import (
    ROW,
    Note,
    RawPairs,
    ReadLog,
    Reject,
    num_texts,
    pairs_in,
)
from cit_curate.storage.durable import append_sha256, atomic_file, read_with_sha256

# Enough captions to tell an encoding from.
MAX_EXAMPLES = 20
_SHA256_BYTES = 32
IS_NAMED = "__named__"
_REASON, _DETAIL = "__reason__", "__detail__"
_OWN_FIELDS = (
    pa.field(IS_NAMED, pa.bool_()),
    pa.field(_REASON, pa.string()),
    pa.field(_DETAIL, pa.string()),
)
_SUMMARY = b"summary"


@dataclass(frozen=True)
class Noted:
    """The notes of one kind.

    Attributes:
        count: Their number.
        num_lines: The lines of their records.
        examples: The first of them, at most `MAX_EXAMPLES`.
        longest: The one with the most lines.
    """

    count: int
    num_lines: int
    examples: tuple[Note, ...]
    longest: Note

    def __add__(self, other: "Noted") -> "Noted":
        return Noted(
            self.count + other.count,
            self.num_lines + other.num_lines,
            (*self.examples, *other.examples)[:MAX_EXAMPLES],
            max(self.longest, other.longest, key=lambda note: note.num_lines),
        )


@dataclass(frozen=True)
class Block:
    """The summary of a block; small, however large the block is.

    Attributes:
        source: The source's name in the pool.
        row_is_image: Whether all pairs of an image must come from one row.
        num_records: Records that were read.
        num_lines: Lines to add to the row numbers of later blocks.
        num_rows: Rows, those without a text included.
        batch_pairs: Pairs in each batch.
        batch_images: Rows of each batch that name an image file and have a text.
        ids: First and last image id if the ids rise, shorter ones before longer ones; else None.
        reasons: The number of rejects and the first reject of each reason.
        has_names: Whether an image id is a name (`RawPairs.is_named`).
        repeats_key: Whether a row has several texts of one key.
        malformed: The malformed records. Rows and records count from the start of the piece.
        first_row: Lines of earlier blocks.
        counts: See `ReadLog.counts`.
        notes: The notes of each kind.
    """

    path: Path
    source: str
    row_is_image: bool
    num_records: int
    num_lines: int
    num_rows: int
    batch_pairs: tuple[int, ...]
    ids: tuple[str, str] | None
    has_names: bool
    repeats_key: bool
    reasons: dict[str, tuple[int, Reject]]
    malformed: tuple[Reject, ...]
    first_row: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, "Noted"] = field(default_factory=dict)
    batch_images: tuple[int, ...] = ()

    @property
    def num_pairs(self) -> int:
        """Pairs in the block."""
        return sum(self.batch_pairs)

    def rows(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The named columns of the rows, batch by batch; `IS_NAMED` may be null."""
        reader = self._reader(names)
        for number in range(len(self.batch_pairs)):
            yield reader.get_batch(number)

    def local_images(self, batch: int) -> tuple[pa.Array, Int64]:
        """The uris of the rows that `batch_images` counts, and int64, their numbers of texts."""
        rows = self._reader(("image_uri", "text_key")).get_batch(batch)
        is_local = _names_image(rows)
        return rows["image_uri"].filter(arrow_of(is_local)), num_texts(rows)[is_local]

    def rejects(self) -> pa.Table:
        """The rejects, as `REJECT_SCHEMA`."""
        names = (ROW, _REASON, _DETAIL)
        batch = self._reader(names).get_batch(len(self.batch_pairs))
        rows = arrow_of(numpy_of(batch[ROW]) + self.first_row)
        columns = [repeated(self.source, len(rows)), rows, batch[_REASON], batch[_DETAIL]]
        return pa.table(columns, schema=REJECT_SCHEMA)

    def pairs(
        self, start: int, stop: int, changes: Changes, names: Sequence[str]
    ) -> Iterator[pa.Table]:
        """The named columns of a range of pairs, in batches.

        Args:
            start: First pair of the range, counted without the dropped ones.
            stop: End of the range, exclusive.
            changes: What becomes of the block's pairs.
            names: Names of the columns.
        """
        reader = self._reader(names)
        dropped, first = changes.dropped, 0
        for number, count in enumerate(self.batch_pairs):
            low, high = np.searchsorted(dropped, [first, first + count]).tolist()
            num_before, num_kept = first - low, count - (high - low)
            begin, end = max(start - num_before, 0), min(stop - num_before, num_kept)
            if begin < end:
                table = pairs_in(reader.get_batch(number))
                table = changes.between(first, first + count).applied(table)
                yield table.slice(begin, end - begin)
            first += count

    def _reader(self, names: Sequence[str]) -> pa.RecordBatchFileReader:
        try:
            size = self.path.stat().st_size - _SHA256_BYTES
            content = pa.memory_map(str(self.path)).read_buffer(size)
            with pa.ipc.open_file(content) as file:
                chosen = [file.schema.get_field_index(name) for name in names]
            options = pa.ipc.IpcReadOptions(included_fields=chosen)
            return pa.ipc.open_file(content, options=options)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error


def write_block(
    path: Path,
    records: Iterable[RawPairs],
    schema: pa.Schema,
    *,
    source: str,
    row_is_image: bool,
    stop_at_once: bool,
) -> Block:
    """Write consecutive records as a block.

    Args:
        path: The block's file.
        records: The records, read as they are written.
        schema: Schema of their rows.
        source: The source's name in the pool.
        row_is_image: See `Block`.
        stop_at_once: Whether to skip the rest after `malformed.MAX_IN_A_ROW` malformed records in a
            row, where the build will fail.
    """
    counted, rising = Counted(), _RisingIds()
    num_records = num_lines = num_rows = 0
    has_names = repeats_key = False
    batch_pairs: list[int] = []
    batch_images: list[int] = []
    rejects: list[Reject] = []
    log = ReadLog()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    block_schema = pa.schema([*schema, *_OWN_FIELDS])
    with atomic_file(path) as temporary:
        with (
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, block_schema, options=options) as writer,
        ):
            for raw in records:
                rejects += raw.rejects
                log.notes += raw.log.notes
                log.counts += raw.log.counts
                num_records += raw.num_records
                num_lines += raw.num_lines
                if raw.rows.num_rows:
                    columns = dict(zip(schema.names, raw.rows.columns, strict=True))
                    if raw.is_named is not None:
                        columns[IS_NAMED] = arrow_of(raw.is_named)
                        has_names |= bool(raw.is_named.any())
                    repeats_key |= raw.repeats_key
                    writer.write_batch(_batch(block_schema, raw.rows.num_rows, columns))
                    batch_pairs.append(int(num_texts(raw.rows).sum()))
                    batch_images.append(int(np.count_nonzero(_names_image(raw.rows))))
                    num_rows += raw.rows.num_rows
                    rising.add(raw.rows["image_id"])
                try:
                    counted = count_malformed(counted, raw.rejects, raw.num_records, path)
                except BadInputError:
                    if stop_at_once:
                        break
            block = Block(
                path=path,
                source=source,
                row_is_image=row_is_image,
                num_records=num_records,
                num_lines=num_lines,
                num_rows=num_rows,
                batch_pairs=tuple(batch_pairs),
                ids=rising.ids,
                has_names=has_names,
                repeats_key=repeats_key,
                reasons=_by_reason(rejects),
                malformed=tuple(reject for reject in rejects if reject.is_malformed),
                counts=dict(log.counts),
                notes=_by_kind(log.notes),
                batch_images=tuple(batch_images),
            )
            summary = json.dumps({**asdict(block), "path": ""})
            columns = {
                ROW: arrow_of(np.array([reject.row for reject in rejects], np.int64)),
                _REASON: strings_of([reject.reason for reject in rejects]),
                _DETAIL: strings_of([reject.detail for reject in rejects]),
            }
            last = _batch(block_schema, len(rejects), columns)
            writer.write_batch(last, {_SUMMARY: summary.encode()})
        append_sha256(temporary)
    return block


def open_block(path: Path) -> Block:
    """The summary of an existing block.

    Raises:
        DamagedError: It is missing, truncated or changed.
    """
    try:
        with pa.ipc.open_file(read_with_sha256(path)) as reader:
            _, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        value = json.loads(metadata[_SUMMARY])
        return Block(
            **{
                **value,
                "path": path,
                "batch_pairs": tuple(value["batch_pairs"]),
                "batch_images": tuple(value["batch_images"]),
                "ids": value["ids"] and tuple(value["ids"]),
                "reasons": {
                    reason: (count, Reject(**first))
                    for reason, (count, first) in value["reasons"].items()
                },
                "malformed": tuple(Reject(**reject) for reject in value["malformed"]),
                "notes": {kind: _noted(noted) for kind, noted in value["notes"].items()},
            }
        )
    except (DamagedError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def comes_before(first: str, second: str) -> bool:
    """Whether an image id sorts before another: shorter ones first, then by bytes."""
    return (len(first.encode()), first.encode()) < (len(second.encode()), second.encode())


def _names_image(rows: pa.RecordBatch) -> Bool:
    """Whether each row names an image file and has a text: bool [rows]."""
    return names_image_file(rows["image_uri"]) & (num_texts(rows) > 0)


class _RisingIds:
    """First and last id while the ids rise; then no image repeats, as in most sources."""

    def __init__(self) -> None:
        self.ids: tuple[str, str] | None = ("", "")

    def add(self, ids: pa.Array) -> None:
        if self.ids is None:
            return
        first, last = ids[0].as_py(), ids[-1].as_py()
        lengths = numpy_of(pc.binary_length(ids))
        rises = lengths[1:] > lengths[:-1]
        if not rises.all():
            greater = numpy_of(pc.greater(ids.slice(1), ids.slice(0, len(ids) - 1)))
            rises |= (lengths[1:] == lengths[:-1]) & greater
        if rises.all() and comes_before(self.ids[1], first):
            self.ids = self.ids[0] or first, last
        else:
            self.ids = None


def _by_reason(rejects: Sequence[Reject]) -> dict[str, tuple[int, Reject]]:
    counts = Counter(reject.reason for reject in rejects)
    firsts = {reject.reason: reject for reject in reversed(rejects)}
    return {reason: (count, firsts[reason]) for reason, count in counts.items()}


def _by_kind(notes: Sequence[Note]) -> dict[str, Noted]:
    found: dict[str, list[Note]] = {}
    for note in notes:
        found.setdefault(note.kind, []).append(note)
    return {
        kind: Noted(
            len(of_kind),
            sum(note.num_lines for note in of_kind),
            tuple(of_kind[:MAX_EXAMPLES]),
            max(of_kind, key=lambda note: note.num_lines),
        )
        for kind, of_kind in found.items()
    }


def _noted(value: Mapping[str, Any]) -> Noted:
    examples = tuple(Note(**note) for note in value["examples"])
    return Noted(value["count"], value["num_lines"], examples, Note(**value["longest"]))


def _batch(schema: pa.Schema, num_rows: int, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """A batch of the given columns, with null for the others."""
    filled = [
        columns[field.name] if field.name in columns else pa.nulls(num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(filled, schema=schema)


def _damaged(path: Path, error: Exception) -> DamagedError:
    return DamagedError(
        f"{path} cannot be read: {error}; remove {path.parent.parent} and build again"
    )
