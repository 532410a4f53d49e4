"""Reader of the YFCC100M metadata file: blocks of whole lines, and the listed images in them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from cit_curate.arrow_numpy import arrow_of, numpy_of
from cit_curate.captions import replace_bad_text
from cit_curate.records import Int64
from cit_curate.sources.rows import (
    ROW,
    ROW_FIELDS,
    RawPairs,
    Reject,
    moved_reject,
    num_texts,
)
from cit_curate.sources.yfcc.format import (
    CARRIED,
    COLUMNS,
    NUM_COLUMNS,
    TEXT_KEYS,
    UInt8,
    UInt32,
    are_listed,
    image_ids_of,
    image_uris_of,
    leading_ids,
)
from cit_curate.sources.yfcc.texts import texts_of

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 4 << 20

SCHEMA = pa.schema([*ROW_FIELDS, *(pa.field(name, pa.string()) for name in CARRIED)])

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TAB, _NEWLINE = b"\t\n"  # adjacent byte values


def read_blocks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Blocks of whole lines: all lines that start in the bytes `start` to `stop` of a file.

    A line longer than `MAX_LINE_BYTES` is cut, but to more than that many bytes.
    """
    with path.open("rb") as stream:
        if start:
            stream.seek(start - 1)
            _skip_line(stream)
        position = stream.tell()
        while position < stop:
            # The end of the last line is found first: a block read in one call is never copied.
            last = min(position + BLOCK_BYTES, stop) - 1
            stream.seek(last)
            rest = stream.readline(MAX_LINE_BYTES + 2)
            if not rest.endswith(b"\n"):
                _skip_line(stream)
            next_position = stream.tell()
            stream.seek(position)
            block = stream.read(last - position + len(rest))
            if not block:
                return
            if position == 0:
                block = block.removeprefix(_BYTE_ORDER_MARK)
            position = next_position
            yield block


def _skip_line(stream: BinaryIO) -> None:
    """Read to the end of a line of any length."""
    while (piece := stream.readline(BLOCK_BYTES)) and not piece.endswith(b"\n"):
        pass


def read_range(
    path: Path, start: int, stop: int, bits: UInt8, *, reference_empty_tags: bool = False
) -> Iterator[RawPairs]:
    """The listed images of all lines that start in the bytes `start` to `stop` of a file.

    Both counts start with the range: lines from 1, records from 0.
    """
    num_lines = num_records = 0
    for content in read_blocks(path, start, stop):
        block = parse_block(content, bits, reference_empty_tags=reference_empty_tags)
        lines = arrow_of(numpy_of(block.rows[ROW]) + (num_lines + 1))
        rejects = [moved_reject(reject, num_lines + 1, num_records) for reject in block.rejects]
        yield replace(block, rows=block.rows.set_column(0, ROW, lines), rejects=rejects)
        num_lines += block.num_lines
        num_records += block.num_records


def parse_block(block: bytes, bits: UInt8, *, reference_empty_tags: bool = False) -> RawPairs:
    """Find the listed images of a block, and clean their texts.

    Args:
        block: Whole lines of the metadata file.
        bits: The listed image ids, as from `format.read_image_ids`.
        reference_empty_tags: Whether to keep tag texts of commas only.

    Returns:
        A row for every listed image, even without a text. Lines are counted from 0 at the start of
        the block, and so are records, which are the lines that are not blank.
    """
    data = np.frombuffer(block, np.uint8)
    cell_ends, first_cells = _cells_of(data)
    num_columns = np.diff(first_cells)
    ends = cell_ends[first_cells[1:] - 1]
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    ids, has_id = leading_ids(data, starts)
    whole = (num_columns == NUM_COLUMNS) & (ends - starts <= MAX_LINE_BYTES)
    rejects, num_blank = _malformed(
        block, starts, ends, num_columns, np.flatnonzero(~whole | ~has_id)
    )
    lines = np.flatnonzero(whole & has_id)
    lines = lines[are_listed(ids[lines], bits)]
    cells = _Cells(block, cell_ends, first_cells[lines])
    rows = _rows(cells, lines, ids[lines], reference_empty_tags=reference_empty_tags)
    for line in lines[num_texts(rows) == 0].tolist():
        detail = f"image {ids[line]:08d}: no text in {', '.join(TEXT_KEYS)}"
        rejects.append(Reject(line, "empty_text", detail, line))
    rejects.sort(key=lambda reject: reject.row)
    return RawPairs(len(starts) - num_blank, rows, rejects, num_lines=len(starts))


def _cells_of(data: UInt8) -> tuple[Int64, Int64]:
    """The cells of a block of lines, separated by tabs and newlines.

    Returns:
        int64 [cells], the end of each cell; and int64 [lines + 1], the index of each line's first
        cell and then the number of all cells.
    """
    ends = np.flatnonzero((data - np.uint8(_TAB)) <= _NEWLINE - _TAB)
    is_last = data[ends] == _NEWLINE
    if len(data) and data[-1] != _NEWLINE:
        ends, is_last = np.append(ends, len(data)), np.append(is_last, True)
    return ends, np.concatenate([[0], np.flatnonzero(is_last) + 1])


@dataclass(frozen=True)
class _Cells:
    """The cells of some lines of a block; each line has all columns.

    Attributes:
        block: The bytes of the whole block.
        ends: int64, the end of each cell of the block.
        first_cells: int64 [lines], the index of each line's first cell.
    """

    block: bytes
    ends: Int64
    first_cells: Int64

    def between(self, first: str, last: str, *, with_tab: bool = False) -> pa.Array:
        """The columns `first` to `last` of each line, tabs between them: binary [lines].

        Args:
            first: The name of the first column.
            last: The name of the last column.
            with_tab: Whether to include the tab after the last column.
        """
        bounds = np.empty(2 * len(self.first_cells), np.int32)
        bounds[0::2] = self.ends[self.first_cells + (COLUMNS.index(first) - 1)] + 1
        bounds[1::2] = self.ends[self.first_cells + COLUMNS.index(last)] + with_tab
        # The bounds cut the block into regions and the gaps between them; every other one is taken.
        # Arrow copies them at memory speed. Slicing bytes costs as much as the cleaning.
        num_bounds = max(len(bounds) - 1, 0)
        buffers = [None, pa.py_buffer(bounds), pa.py_buffer(self.block)]
        whole = pa.Array.from_buffers(pa.binary(), num_bounds, buffers)
        return whole.take(arrow_of(np.arange(0, num_bounds, 2, dtype=np.int32)))

    def tabs_between(self, first: str, last: str) -> Int64:
        """int64 [lines, columns]: the offsets of the tabs in the joined bytes of `between`."""
        column = COLUMNS.index(first)
        starts = self.ends[self.first_cells + (column - 1)] + 1
        tabs = self.ends[self.first_cells[:, None] + np.arange(column, COLUMNS.index(last) + 1)]
        lengths = tabs[:, -1] + 1 - starts
        moved: Int64 = tabs + (np.cumsum(lengths) - lengths - starts)[:, None]
        return moved


def _rows(
    cells: _Cells, lines: Int64, ids: UInt32, *, reference_empty_tags: bool
) -> pa.RecordBatch:
    """A row for each image, with the columns of `SCHEMA`."""
    regions = cells.between("title", "machine_tags", with_tab=True)
    tabs = cells.tabs_between("title", "machine_tags")
    columns = [
        *(arrow_of(lines), image_ids_of(ids), image_uris_of(ids)),
        *texts_of(regions, tabs, reference_empty_tags=reference_empty_tags),
        *(_strings(cells.between(name, name)) for name in CARRIED),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _strings(cells: pa.Array) -> pa.Array:
    """Cells as strings; bytes that are not UTF-8 become U+FFFD."""
    try:
        return cells.cast(pa.string())
    except pa.ArrowInvalid:
        decoded = (cell.decode("utf-8", "surrogateescape") for cell in cells.to_pylist())
        return pa.array((replace_bad_text(cell)[0] for cell in decoded), pa.string())


def _malformed(
    block: bytes, starts: Int64, ends: Int64, num_columns: Int64, lines: Int64
) -> tuple[list[Reject], int]:
    """The rejects of lines that are no rows, and the number of blank lines, which are no fault."""
    rejects: list[Reject] = []
    num_blank = 0
    for line in lines.tolist():
        start, end, columns = int(starts[line]), int(ends[line]), int(num_columns[line])
        if end - start > MAX_LINE_BYTES:
            reason, detail = "bad_row", f"the line is longer than {MAX_LINE_BYTES:,} bytes"
        elif not block[start:end].strip():
            num_blank += 1
            continue
        elif columns != NUM_COLUMNS:
            reason = "column_count"
            detail = f"{columns} columns where YFCC100M has {NUM_COLUMNS}, separated by tabs"
            if columns == NUM_COLUMNS - 2:
                detail += "; this looks like the release without line numbers and hashes"
        else:
            cell = block[start : min(end, start + 60)].split(b"\t")[0].decode("utf-8", "replace")
            reason = "bad_image_id"
            detail = f"image id {cell!a} is no line number of at most 8 digits"
        rejects.append(Reject(line, reason, detail, line - num_blank))
    return rejects, num_blank
