"""Reading sources in pieces that any process may read; each piece writes its missing blocks.

A source that can be read from the middle is read range by range, and each range is a block. Any
other has a piece for each worker that it is worth: each piece reads the whole source, and writes
every `num_pieces`-th block. Only the reader knows where a record of a quoted table starts, and
reading is less work than making pairs.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, zip_longest
from pathlib import Path

import pyarrow as pa

from cit_curate.carried import carried_type
from cit_curate.config import Cleaning
from cit_curate.engines.workers import Mapper, keep_freed_memory
from cit_curate.errors import BadInputError, DamagedError
from cit_curate.pool.build.blocks import Block, Noted, open_block, write_block
from cit_curate.pool.build.malformed import AS_USUAL, Counted, InARow, count_malformed
from cit_curate.pool.build.summary import SourceFound
from cit_curate.pool.format import SourceEntry
from cit_curate.sources.columns import Columns
from cit_curate.sources.pairs import pairs_of
from cit_curate.sources.rows import (
    MALFORMED,
    ROW_FIELDS,
    RawPairs,
    Reject,
    SourceReader,
    SourceRows,
    moved_reject,
)
from cit_curate.sources.source import Source, open_source
from cit_curate.storage.durable import read_json, write_sealed

# Batches of a reader, of at most 8,192 records, in a block.
BLOCK_BATCHES = 8
# Bytes of source from which a worker is worth its start, and one more reading of the source.
# Measured on 2 busy cores: two workers are no faster than one on a CSV of 79 MB.
BYTES_PER_WORKER = 64 << 20
REJECT_ROWS = 65_536

# Formats in which making the pairs costs as much as reading the records.
_STRIPED = ("csv", "tsv", "json", "jsonl", "parquet", "arrow")


@dataclass(frozen=True)
class PieceTask:
    """A piece of a source to read, and the folder for its blocks.

    Attributes:
        span: Byte range (start, stop); None = every `num_pieces`-th block.
        stops: When malformed records in a row end the build.
    """

    folder: Path
    source: Source
    columns: Columns
    clean: Cleaning
    piece: int
    num_pieces: int
    span: tuple[int, int] | None = None
    stops: InARow = AS_USUAL


@dataclass(frozen=True)
class Damage:
    """What is wrong with a source that is left out because it is damaged."""

    detail: str


class _SourceDamagedError(Exception):
    """The source of a piece is damaged, and not one of our blocks."""


def piece_tasks(
    folder: Path,
    source: Source,
    entry: SourceEntry,
    reader: SourceReader,
    columns: Columns,
    clean: Cleaning,
    *,
    num_workers: int,
    stops: InARow = AS_USUAL,
) -> list[PieceTask]:
    """The tasks that read one source, for up to `num_workers` workers."""
    if reader.range_bytes:
        spans: Sequence[tuple[int, int] | None] = list(_spans(entry.bytes, reader.range_bytes))
    else:
        most = max(entry.bytes // BYTES_PER_WORKER, 1) if source.format in _STRIPED else 1
        spans = [None] * max(min(num_workers, most), 1)
    return [
        PieceTask(folder, source, columns, clean, piece, len(spans), span, stops)
        for piece, span in enumerate(spans)
    ]


def _spans(size: int, range_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover a file; the last ones are smaller, to let workers end about together."""
    start = 0
    while start < size:
        length = range_bytes if size - start > 2 * range_bytes else -(-range_bytes // 4)
        yield start, min(start + length, size)
        start += length


def read_piece(task: PieceTask) -> list[Block] | Damage:
    """The blocks of a piece, of which missing ones are written; or why its source is left out.

    After too many malformed records in a row the rest is skipped: the build will fail at these.

    Raises:
        ConfigError: See `open_source`.
        DamagedError: A block is damaged; or the source, which is not to be left out.
    """
    try:
        return _read_piece(task)
    except _SourceDamagedError as error:
        if task.span is not None:
            raise DamagedError(str(error)) from error
        if task.source.reading.on_damaged == "skip":
            return Damage(str(error))
        raise damaged(str(error)) from error


def damaged(what: str) -> DamagedError:
    """The error for a damaged source, with the option that leaves it out."""
    return DamagedError(f"{what}; to build without it, give --on-damaged skip")


def _read_piece(task: PieceTask) -> list[Block]:
    if (numbers := _done(task)) is not None:
        return [open_block(_block_path(task.folder, number)) for number in numbers]
    keep_freed_memory()
    task.folder.mkdir(parents=True, exist_ok=True)
    try:
        reader = open_source(task.source, task.columns)
    except DamagedError as error:
        raise _SourceDamagedError(str(error)) from error
    extra = (pa.field(name, carried_type(kind)) for name, kind in reader.extra_types.items())
    schema = pa.schema([*ROW_FIELDS, *extra])
    blocks = []
    for number, records in _blocks_of(task, reader):
        path = _block_path(task.folder, number)
        block = open_block(path) if path.is_file() else None
        if block is None or (block.is_cut and not task.stops.is_certain):
            block = write_block(
                path,
                records,
                schema,
                source=task.source.name,
                row_is_image=reader.row_is_image,
                stop_at_once=reader.read is None and task.stops.is_certain,
            )
        blocks.append(block)
        try:
            count_malformed(Counted(), block.malformed, 0, task.source.path)
        except BadInputError:
            if task.stops.is_certain:
                break
    return blocks


def _blocks_of(task: PieceTask, reader: SourceReader) -> Iterator[tuple[int, Iterable[RawPairs]]]:
    """The number and the records of each block of a piece; the records are read lazily."""
    if task.span is not None:
        assert reader.read_range is not None
        yield task.piece, reader.read_range(task.folder, *task.span)
        return
    assert reader.read is not None
    assert reader.columns is not None
    batches, columns, number = reader.read(), reader.columns, 0
    source, root = task.source, task.source.image_root
    while block := _next_of(batches):
        if number % task.num_pieces == task.piece:
            yield (
                number,
                (
                    pairs_of(rows, columns, image_root=root, clean=task.clean, source=source.name)
                    for rows in block
                ),
            )
        number += 1
    if task.piece == 0:
        write_sealed(task.folder / "end.json", {"num_blocks": number})


def _next_of(batches: Iterator[SourceRows]) -> list[SourceRows]:
    """The batches of the next block."""
    try:
        return list(islice(batches, BLOCK_BATCHES))
    except DamagedError as error:
        raise _SourceDamagedError(str(error)) from error


def damaged_block(folder: Path, source: Source, damage: Damage) -> Block:
    """A block without rows, and with the reject of a source that is left out."""
    reason = "damaged_archive" if source.format == "webdataset" else "damaged_file"
    none = pa.RecordBatch.from_pylist([], schema=pa.schema(ROW_FIELDS))
    folder.mkdir(parents=True, exist_ok=True)
    return write_block(
        folder / "damaged.arrow",
        [RawPairs(0, none, [Reject(0, reason, damage.detail, 0)])],
        pa.schema(ROW_FIELDS),
        source=source.name,
        row_is_image=False,
        stop_at_once=False,
    )


def _done(task: PieceTask) -> range | None:
    """The numbers of a piece's blocks, or None unless all are known to exist."""
    try:
        num_blocks = _num_blocks(task.folder)
    except DamagedError:
        return None
    numbers = range(task.piece, num_blocks, task.num_pieces)
    all_exist = all(_block_path(task.folder, number).is_file() for number in numbers)
    return numbers if all_exist else None


def _num_blocks(folder: Path) -> int:
    path = folder / "end.json"
    value = read_json(path)
    if value.keys() != {"num_blocks"}:
        raise DamagedError(f"{path} is damaged; remove {folder.parent} and build again")
    return int(value["num_blocks"])


def _block_path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:06d}.arrow"


def blocks_in_order(
    mapped: Mapper, tasks: Sequence[Sequence[PieceTask]]
) -> Iterator[Iterator[Block] | Damage]:
    """The blocks of each source in order, as soon as they are known; others are read meanwhile.

    Of a source that is left out, the damage, as the first of its pieces found it.
    """
    done = mapped(read_piece, list(chain.from_iterable(tasks)))
    for pieces in tasks:
        if all(piece.span for piece in pieces):
            # A range is one block, which is ready as soon as the range is read.
            yield chain.from_iterable(_blocks(next(done)) for _ in pieces)
            continue
        results = [next(done) for _ in pieces]
        damages = [result for result in results if isinstance(result, Damage)]
        if damages:
            yield damages[0]
        else:
            in_turn = zip_longest(*map(_blocks, results))
            yield (block for turn in in_turn for block in turn if block is not None)


def _blocks(result: list[Block] | Damage) -> list[Block]:
    assert not isinstance(result, Damage)
    return result


@dataclass
class Found:
    """The result of reading the sources so far.

    Attributes:
        by_line: Whether messages call records lines, and report only malformed ones, as for YFCC.
        stops: When malformed records in a row end the build.
        blocks: All blocks with their first rows, without their malformed records.
        records: Records of each source.
        num_malformed: Malformed records.
        reasons: The number of rejects for each reason.
        firsts: The position and the detail of the first reject for each reason.
        sources: What else was found in each source.
    """

    by_line: bool
    stops: InARow = AS_USUAL
    blocks: list[Block] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    num_malformed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)
    sources: list[SourceFound] = field(default_factory=list)

    @property
    def num_further_lines(self) -> int:
        """Lines of records beyond the first line of each."""
        spanning = (of_source.notes.get("spanning_lines") for of_source in self.sources)
        further = sum(noted.num_lines - noted.count for noted in spanning if noted)
        return further + sum(of_source.reject_lines for of_source in self.sources)

    @property
    def num_pairs(self) -> int:
        """Pairs, repeated ones included."""
        return sum(block.num_pairs for block in self.blocks)

    def add_source(self, path: Path, blocks: Iterator[Block], damage: str = "") -> Iterator[int]:
        """Add the blocks of a source, and yield the lines or records so far after each.

        Args:
            path: The source.
            blocks: Its blocks.
            damage: Why it is left out, "" unless it is.

        Raises:
            BadInputError: There are too many malformed records in a row.
        """
        counted, num_lines = Counted(), 0
        num_texts = reject_lines = 0
        counts: Counter[str] = Counter()
        notes: dict[str, Noted] = {}
        num_before, num_malformed = sum(self.records), self.num_malformed
        self.records.append(0)
        for block in blocks:
            self.blocks.append(replace(block, malformed=(), first_row=num_lines))
            first_record = counted.num_records if block.num_lines else 0
            for reason, (count, reject) in block.reasons.items():
                position = f"line {num_lines + reject.row}"
                position = position if self.by_line else f"{block.source} row {reject.row}"
                self.reasons[reason] += count
                self.firsts.setdefault(reason, f"{position}, {reject.detail}")
            moved = [moved_reject(reject, num_lines, first_record) for reject in block.malformed]
            counted = count_malformed(
                counted, moved, block.num_records, path, self.top_reasons, stops=self.stops
            )
            num_lines += block.num_lines
            self.records[-1] = counted.num_records
            self.num_malformed = num_malformed + counted.num_malformed
            num_texts += block.num_pairs
            reject_lines += sum(reject.num_lines - 1 for reject in block.malformed)
            counts.update(block.counts)
            for kind, noted in block.notes.items():
                notes[kind] = notes[kind] + noted if kind in notes else noted
            yield num_lines if self.by_line else num_before + counted.num_records

        self.sources.append(
            SourceFound(self.records[-1], num_texts, reject_lines, counts, notes, damage)
        )

    def rejects(self) -> Generator[pa.Table]:
        """Every rejected record, in reading order, `REJECT_ROWS` at a time."""
        waiting: list[pa.Table] = []
        for block in self.blocks:
            waiting += [block.rejects()] if block.reasons else []
            while sum(table.num_rows for table in waiting) >= REJECT_ROWS:
                table = pa.concat_tables(waiting)
                yield table.slice(0, REJECT_ROWS)
                waiting = [table.slice(REJECT_ROWS)]
        if waiting:
            yield pa.concat_tables(waiting)

    def top_reasons(self) -> str:
        """`; most often: …` with the three most frequent reasons and an example of each."""
        reasons = Counter(
            {
                reason: count
                for reason, count in self.reasons.items()
                if reason in MALFORMED or not self.by_line
            }
        )
        if not reasons and not self.by_line:
            return ""
        shown = [
            f"{reason} {count:,} (first: {self.firsts[reason]})"
            for reason, count in reasons.most_common(3)
        ]
        return f"; most often: {'; '.join(shown)}"

    def no_pairs(self, paths: str) -> str:
        """The message for sources that have no pair."""
        records = sum(self.records)
        if not self.by_line:
            what = f"{records:,} rows were read" if records else "there is no row"
            return f"{paths}: {what} and no pair came of them{self.top_reasons()}"
        if not records:
            return f"{paths}: there is no line in it"
        shown = ", ".join(f"{reason} {n:,}" for reason, n in self.reasons.most_common(3))
        why = f"rejected: {shown}" if shown else "none has an id that the lists name"
        return f"{paths}: {records:,} lines were read and no pair came of them; {why}"
