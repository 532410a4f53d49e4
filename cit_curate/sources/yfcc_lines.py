"""Reading the metadata file of YFCC100M: blocks of whole lines, and the listed images in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cit_curate.captions import replace_bad_text
from cit_curate.sources.rows import Reject
from cit_curate.sources.yfcc import (
    CARRIED,
    COLUMNS,
    NUM_COLUMNS,
    TEXT_KEYS,
    UInt8,
    UInt32,
    are_listed,
    leading_ids,
    line_bounds,
)
from cit_curate.sources.yfcc_texts import TEXTS_TYPE, texts_of

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 4 << 20

IMAGE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.uint32()),
        pa.field("texts", TEXTS_TYPE),
        *(pa.field(name, pa.string()) for name in CARRIED),
    ]
)
INDEX_TYPE = np.dtype([("image_id", "<u4"), ("line", "<u4"), ("num_texts", "u1")])

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TAB = ord("\t")
_TEXTS = (COLUMNS.index("title"), COLUMNS.index("machine_tags"))
_LICENSE = (COLUMNS.index("license_name"), COLUMNS.index("license_url"))
_PAGE = (COLUMNS.index("page_url"), COLUMNS.index("page_url"))

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class YfccBlock:
    """What a block of lines holds.

    Attributes:
        num_lines: Lines in the block.
        num_records: Those that are not blank.
        images: `IMAGE_SCHEMA`: the listed images with a text, in the order of the lines.
        index: `INDEX_TYPE`: every listed image, with its line, counted from the block's own 0.
        rejects: In the order of the lines; `row` counts lines, `record` those that are not blank,
            both from the block's own 0.
    """

    num_lines: int
    num_records: int
    images: pa.RecordBatch
    index: npt.NDArray[np.void]
    rejects: list[Reject]


def read_blocks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Blocks of whole lines: all the lines that start in the bytes `start` to `stop` of a file.

    A line that is longer than `MAX_LINE_BYTES` arrives cut, but longer than that.
    """
    with path.open("rb") as stream:
        if start:
            stream.seek(start - 1)
            _skip_line(stream)
        position = stream.tell()
        while position < stop:
            block = stream.read(min(BLOCK_BYTES, stop - position))
            if not block:
                return
            if not block.endswith(b"\n"):
                block += stream.readline(MAX_LINE_BYTES + 1)
                if not block.endswith(b"\n"):
                    _skip_line(stream)
            if position == 0:
                block = block.removeprefix(_BYTE_ORDER_MARK)
            position = stream.tell()
            yield block


def _skip_line(stream: BinaryIO) -> None:
    """Read to the end of a line, however long it is."""
    while (piece := stream.readline(BLOCK_BYTES)) and not piece.endswith(b"\n"):
        pass


def parse_block(block: bytes, bits: UInt8, *, reference_empty_tags: bool = False) -> YfccBlock:
    """Find the listed images of a block, and clean their texts.

    Args:
        block: Whole lines of the metadata file.
        bits: The image ids to look for (`yfcc.read_image_ids`).
        reference_empty_tags: Keep tag texts of commas only.
    """
    data = np.frombuffer(block, np.uint8)
    starts, ends = line_bounds(data)
    tabs = np.flatnonzero(data == _TAB)
    first_tabs = np.searchsorted(tabs, starts)
    num_columns = np.searchsorted(tabs, ends) - first_tabs + 1
    ids, has_id = leading_ids(data, starts, ends)
    whole = (num_columns == NUM_COLUMNS) & (ends - starts <= MAX_LINE_BYTES)
    rejects, num_blank = _malformed(
        block, starts, ends, num_columns, np.flatnonzero(~whole | ~has_id)
    )
    lines = np.flatnonzero(whole & has_id)
    lines = lines[are_listed(ids[lines], bits)]
    # int64 [images, NUM_COLUMNS - 1]: the tab after each column but the last.
    after = tabs[first_tabs[lines, None] + np.arange(NUM_COLUMNS - 1)]
    images, counts = _images(block, ids[lines], after, reference_empty_tags=reference_empty_tags)
    index = np.zeros(len(lines), INDEX_TYPE)
    index["image_id"], index["line"], index["num_texts"] = ids[lines], lines, counts
    for line in lines[counts == 0].tolist():
        detail = f"image {ids[line]:08d}: no text in {', '.join(TEXT_KEYS)}"
        rejects.append(Reject(line, "empty_text", detail, line))
    rejects.sort(key=lambda reject: reject.row)
    return YfccBlock(len(starts), len(starts) - num_blank, images, index, rejects)


def _images(
    block: bytes, ids: UInt32, after: Int64, *, reference_empty_tags: bool
) -> tuple[pa.RecordBatch, Int64]:
    """The images with a text, and how many texts each of all the images has."""
    cleaned = texts_of(_cells(block, after, *_TEXTS), reference_empty_tags=reference_empty_tags)
    licenses: dict[bytes, int] = {}
    codes = [licenses.setdefault(cell, len(licenses)) for cell in _cells(block, after, *_LICENSE)]
    names_and_urls = [cell.split(b"\t") for cell in licenses]
    chosen = pa.array(codes, pa.int32())
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(ids),
            cleaned.texts,
            _strings([name for name, _ in names_and_urls]).take(chosen),
            _strings([url for _, url in names_and_urls]).take(chosen),
            _strings(_cells(block, after, *_PAGE)),
        ],
        schema=IMAGE_SCHEMA,
    )
    return batch.filter(pa.array(cleaned.counts > 0)), cleaned.counts


def _cells(block: bytes, after: Int64, first: int, last: int) -> list[bytes]:
    """The columns `first` to `last` of each image, tabs between them."""
    starts, ends = (after[:, first - 1] + 1).tolist(), after[:, last].tolist()
    return [block[start:end] for start, end in zip(starts, ends, strict=True)]


def _strings(cells: list[bytes]) -> pa.Array:
    """Text as it stands in the file; bytes that are not UTF-8 become U+FFFD."""
    try:
        return pa.array(cells, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        texts = (replace_bad_text(cell.decode("utf-8", "surrogateescape"))[0] for cell in cells)
        return pa.array(texts, pa.string())


def _malformed(
    block: bytes, starts: Int64, ends: Int64, num_columns: Int64, lines: Int64
) -> tuple[list[Reject], int]:
    """Rejects of lines that are no rows, and how many of them are blank, which is no fault."""
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
