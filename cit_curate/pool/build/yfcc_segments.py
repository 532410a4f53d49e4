"""The two halves of building a YFCC pool, each in pieces that any process may do.

`read_segment` turns a range of the metadata file into a segment, a folder on disk; `write_part`
turns images of some segments into one part of the pool.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cit_curate.arrow_numpy import arrow_of, numpy_of, repeated, strings_of
from cit_curate.engines.workers import keep_freed_memory
from cit_curate.errors import BadInputError, DamagedError
from cit_curate.pool.build.malformed import Counted, count_malformed
from cit_curate.pool.format import REJECT_SCHEMA, pair_schema
from cit_curate.pool.parts import PartsWritten, cut_groups, write_parts
from cit_curate.records import Int64
from cit_curate.sources.rows import MALFORMED, Reject
from cit_curate.sources.yfcc import CARRIED, TEXT_KEYS, image_ids_of, image_uris_of
from cit_curate.sources.yfcc_lines import (
    IMAGE_SCHEMA,
    INDEX_TYPE,
    parse_block,
    read_blocks,
)
from cit_curate.storage.durable import (
    atomic_folder,
    check_file,
    describe_file,
    file_entry,
    read_json,
    write_sealed,
)

POOL_SCHEMA = pair_schema({name: pa.string() for name in CARRIED})

Index = npt.NDArray[np.void]

# What a segment has besides its summary.
_FILES = ("images.arrow", "index.npy", "rejects.arrow")


@dataclass(frozen=True)
class SegmentTask:
    """A range of the metadata file to read.

    Attributes:
        folder: Where the segment will be; whole, or not at all.
        ids: File with the bits of the image ids.
        start: First byte of the range; lines that start in it belong to it.
        stop: First byte after it.
    """

    folder: Path
    metadata: Path
    ids: Path
    start: int
    stop: int
    reference_empty_tags: bool


@dataclass(frozen=True)
class Segment:
    """A range that was read.

    Attributes:
        num_lines: Lines that start in the range.
        num_records: Those that are not blank.
        batch_rows: Images in each batch of `images.arrow`.
        malformed: The malformed lines; rows and records count from the segment's own 0.
        reasons: How many lines were rejected for what.
    """

    folder: Path
    num_lines: int
    num_records: int
    batch_rows: tuple[int, ...]
    malformed: tuple[Reject, ...]
    reasons: dict[str, int]

    def index(self) -> Index:
        """`yfcc_lines.INDEX_TYPE` [listed images]."""
        index: Index = self._opened(lambda: np.load(self.folder / "index.npy", allow_pickle=False))
        return index

    def rejects(self, source: str, first_line: int) -> pa.Table:
        """`REJECT_SCHEMA`; rows count from 1 in the whole file."""
        table = self._opened(lambda: pa.ipc.open_file(self.folder / "rejects.arrow").read_all())
        rows = numpy_of(table["line"]) + (first_line + 1)
        return rejects_table(source, rows, table["reason"], table["detail"])

    def images(self, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Number of the first image, and images; of the images `start` to `stop`."""
        path = str(self.folder / "images.arrow")
        reader = self._opened(lambda: pa.ipc.open_file(pa.memory_map(path)))
        first = 0
        for number, rows in enumerate(self.batch_rows):
            low, high = max(start, first), min(stop, first + rows)
            if low < high:
                batch = self._opened(partial(reader.get_batch, number))
                yield low, batch.slice(low - first, high - low)
            first += rows

    def _opened(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (pa.ArrowInvalid, ValueError, FileNotFoundError) as error:
            raise _damaged(self.folder, error) from error


def _damaged(folder: Path, error: Exception) -> DamagedError:
    return DamagedError(
        f"{folder} is damaged ({error}); remove {folder.parents[1]} and build again"
    )


def read_segment(task: SegmentTask) -> Segment:
    """Read a range of the metadata, unless its segment is there already.

    After `malformed.MAX_IN_A_ROW` malformed lines in a row the rest of the range is left alone: the
    build ends when it comes to them.
    """
    if task.folder.is_dir():
        return _read_summary(task.folder)
    keep_freed_memory()
    bits = np.load(task.ids, mmap_mode="r", allow_pickle=False)
    rejects: list[Reject] = []
    indexes: list[Index] = [np.zeros(0, INDEX_TYPE)]
    batch_rows: list[int] = []
    counted, num_lines = Counted(), 0
    with atomic_folder(task.folder) as folder:
        with _image_writer(folder / "images.arrow") as writer:
            for content in read_blocks(task.metadata, task.start, task.stop):
                block = parse_block(content, bits, reference_empty_tags=task.reference_empty_tags)
                moved = [moved_reject(r, num_lines, counted.num_records) for r in block.rejects]
                rejects += moved
                block.index["line"] += np.uint32(num_lines)
                indexes.append(block.index)
                if block.images.num_rows:
                    writer.write_batch(block.images)
                    batch_rows.append(block.images.num_rows)
                num_lines += block.num_lines
                try:
                    counted = count_malformed(counted, moved, block.num_records, task.metadata)
                except BadInputError:
                    break
        save_array(folder / "index.npy", np.concatenate(indexes))
        _write_rejects(folder / "rejects.arrow", rejects)
        segment = Segment(
            folder=task.folder,
            num_lines=num_lines,
            num_records=counted.num_records,
            batch_rows=tuple(batch_rows),
            malformed=tuple(reject for reject in rejects if reject.reason in MALFORMED),
            reasons=dict(Counter(reject.reason for reject in rejects)),
        )
        files = [describe_file(folder / name, folder, rows=0) for name in _FILES]
        described = {**asdict(segment), "folder": "", "files": [asdict(file) for file in files]}
        write_sealed(folder / "segment.json", described)
    return segment


@dataclass(frozen=True)
class Piece:
    """Images `start` to `stop` of a segment, but for those in `repeated`, int64 and sorted."""

    segment: Segment
    start: int
    stop: int
    repeated: npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartTask:
    """A part of the pool to write: its number, and the images that are in it.

    Attributes:
        folder: The pool's folder, with `pairs` in it.
        source: Name of the source in the pool.
        max_rows: Most rows of a row group.
    """

    folder: Path
    number: int
    pieces: tuple[Piece, ...]
    source: str
    max_rows: int


def write_part(task: PartTask) -> PartsWritten:
    """Write one part; the images in it fit in one."""
    tables = (_pairs(batch, task.source) for piece in task.pieces for batch in _images_of(piece))
    groups = cut_groups(tables, task.max_rows)
    written = write_parts(groups, task.folder, POOL_SCHEMA, first_part=task.number)
    assert len(written.parts) == 1
    return written


def _images_of(piece: Piece) -> Iterator[pa.RecordBatch]:
    for first, batch in piece.segment.images(piece.start, piece.stop):
        low, high = np.searchsorted(piece.repeated, [first, first + batch.num_rows])
        if low == high:
            yield batch
        else:
            keep = np.ones(batch.num_rows, np.bool_)
            keep[piece.repeated[low:high] - first] = False
            yield batch.filter(arrow_of(keep))


def _pairs(images: pa.RecordBatch, source: str) -> pa.Table:
    """The pairs of images, `POOL_SCHEMA`."""
    texts = images["texts"].flatten()
    counts = numpy_of(images["texts"].value_lengths())
    image_of = arrow_of(np.repeat(np.arange(len(counts)), counts))
    ids = numpy_of(images["image_id"])
    columns = {
        "image_id": image_ids_of(ids).take(image_of),
        "text_key": strings_of(TEXT_KEYS).take(texts.field("text_key")),
        "caption": texts.field("caption"),
        "image_uri": image_uris_of(ids).take(image_of),
        "source": repeated(source, len(texts)),
        "caption_hash": texts.field("caption_hash"),
        "text_fixed": texts.field("text_fixed"),
        **{name: images[name].take(image_of) for name in CARRIED},
    }
    return pa.table(columns, schema=POOL_SCHEMA)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a `.npy` file; unlike `np.save` to a path, a full disk is an error with its errno."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    path.write_bytes(content.getbuffer())


def moved_reject(reject: Reject, num_lines: int, num_records: int) -> Reject:
    """A reject as counted from a place that many lines and records earlier."""
    return replace(reject, row=num_lines + reject.row, record=num_records + reject.record)


@contextmanager
def _image_writer(path: Path) -> Iterator[pa.RecordBatchFileWriter]:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.OSFile(str(path), "wb") as stream,
        pa.ipc.new_file(stream, IMAGE_SCHEMA, options=options) as writer,
    ):
        yield writer


def _write_rejects(path: Path, rejects: list[Reject]) -> None:
    table = pa.table(
        {
            "line": arrow_of(np.array([reject.row for reject in rejects], np.int64)),
            "reason": strings_of([reject.reason for reject in rejects]),
            "detail": strings_of([reject.detail for reject in rejects]),
        }
    )
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


def _read_summary(folder: Path) -> Segment:
    path = folder / "segment.json"
    try:
        value = read_json(path)
        for entry in value.pop("files"):
            check_file(folder, file_entry(entry, str(path)))
        malformed = tuple(Reject(**reject) for reject in value["malformed"])
        batch_rows = tuple(value["batch_rows"])
        changed = {"folder": folder, "malformed": malformed, "batch_rows": batch_rows}
        return Segment(**{**value, **changed})
    except (DamagedError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def rejects_table(
    source: str,
    rows: Int64,
    reasons: pa.ChunkedArray | pa.Array,
    details: pa.ChunkedArray | pa.Array,
) -> pa.Table:
    """`REJECT_SCHEMA` of one source."""
    columns = [repeated(source, len(rows)), arrow_of(rows), reasons, details]
    return pa.table(columns, schema=REJECT_SCHEMA)
