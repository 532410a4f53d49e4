"""The pairs that a pool keeps of its blocks, and where its parts are cut; from the keys alone.

Memory holds a few numbers for each block and part, and the keys of one block at a time. Where an
image may repeat, DuckDB finds repeats out of core. A file for each block lists the dropped pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from cit_curate.arrow_numpy import arrow_of
from cit_curate.pool.build.blocks import Block, comes_before
from cit_curate.pool.build.staging import Staging
from cit_curate.pool.format import group_rows
from cit_curate.pool.parts import image_starts, part_ends
from cit_curate.records import Int64
from cit_curate.sources.rows import num_texts


@dataclass(frozen=True)
class KeptBlock:
    """The `num_pairs` pairs kept of a block: all but those listed in the file `dropped`."""

    block: Block
    num_pairs: int
    dropped: Path | None = None

    def dropped_pairs(self) -> Int64:
        """int64: the pairs that are left out, ascending."""
        if self.dropped is None:
            return np.zeros(0, np.int64)
        pairs: Int64 = np.load(self.dropped, allow_pickle=False)
        return pairs


@dataclass(frozen=True)
class Piece:
    """The kept pairs `start` to `stop` - 1 of a block."""

    kept: KeptBlock
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """The pairs of a pool, and its parts.

    Attributes:
        kept: The kept pairs of each block.
        num_pairs: Kept pairs of all blocks.
        max_rows: Largest number of rows in a row group.
        num_repeats: Keys that repeat an earlier one.
        num_rows: Rows of the sources, those without a text included.
        num_images: Distinct images in them.
        parts: The pieces of each part; None where the rows of an image are scattered, and must be
            brought together first.
        staging: The database of keys; None if no image repeats.
    """

    kept: tuple[KeptBlock, ...]
    num_pairs: int
    max_rows: int
    num_repeats: int
    num_rows: int
    num_images: int
    parts: list[tuple[Piece, ...]] | None
    staging: Staging | None


@contextmanager
def planned(blocks: Sequence[Block], folder: Path) -> Iterator[Plan]:
    """The plan of a pool, valid while the block runs.

    Args:
        blocks: The blocks of all sources, in order.
        folder: A new folder for the plan's own files; it is removed at the end.
    """
    num_images = num_rows = sum(block.num_rows for block in blocks)
    num_repeats, staging = 0, None
    with ExitStack() as opened:
        if not _no_image_repeats(blocks):
            staging = opened.enter_context(closing(Staging(folder)))
            for block in blocks:
                staging.add(block)
            num_repeats = staging.find_repeats()
            num_images = staging.num_images(with_text=False)
        kept = tuple(_kept(blocks, staging if num_repeats else None, folder))
        num_pairs = sum(kept_block.num_pairs for kept_block in kept)
        # Repeated pairs count here, except those of rows that are left out whole.
        max_rows = group_rows(
            sum(k.num_pairs if k.block.row_is_image else k.block.num_pairs for k in kept)
        )
        parts, num_runs = _parts(kept, max_rows)
        in_order = staging is None or num_runs == staging.num_images(with_text=True)
        yield Plan(
            kept=kept,
            num_pairs=num_pairs,
            max_rows=max_rows,
            num_repeats=num_repeats,
            num_rows=num_rows,
            num_images=num_images,
            parts=parts if in_order else None,
            staging=staging,
        )


def _no_image_repeats(blocks: Sequence[Block]) -> bool:
    bounds = [block.ids for block in blocks if block.num_rows]
    rises = (a and b and comes_before(a[1], b[0]) for a, b in pairwise(bounds))
    return None not in bounds and all(rises)


def _kept(blocks: Sequence[Block], staging: Staging | None, folder: Path) -> Iterator[KeptBlock]:
    """The kept pairs of each block: all but the repeats in `staging`."""
    first = 0
    for number, block in enumerate(blocks):
        num_keys = block.num_rows if block.row_is_image else block.num_pairs
        repeats = staging.repeats(first, first + num_keys) if staging else ()
        first += num_keys
        if not len(repeats):
            yield KeptBlock(block, block.num_pairs)
            continue
        if block.row_is_image:
            is_dropped = np.zeros(num_keys, np.bool_)
            is_dropped[repeats] = True
            counts = [num_texts(rows) for rows in block.rows(("text_key",))]
            repeats = np.flatnonzero(np.repeat(is_dropped, np.concatenate(counts)))
        path = folder / f"dropped-{number:06d}.npy"
        with path.open("wb") as file:
            np.save(file, repeats, allow_pickle=False)
        yield KeptBlock(block, block.num_pairs - len(repeats), path)


def _parts(kept: Sequence[KeptBlock], max_rows: int) -> tuple[list[tuple[Piece, ...]], int]:
    """The pieces of each part, and the number of runs of pairs of one image."""
    num_runs = 0

    def counted() -> Iterator[Int64]:
        nonlocal num_runs
        for counts in _image_counts(kept):
            num_runs += len(counts)
            yield counts

    firsts = np.concatenate([[0], np.cumsum([k.num_pairs for k in kept], dtype=np.int64)])
    parts, start = [], 0
    for stop in part_ends(counted(), max_rows):
        low = int(np.searchsorted(firsts, start, side="right")) - 1
        high = int(np.searchsorted(firsts, stop, side="left"))
        pieces = []
        for number in range(low, high):
            first, count = int(firsts[number]), kept[number].num_pairs
            begin, end = max(start - first, 0), min(stop - first, count)
            if begin < end:
                pieces.append(Piece(kept[number], begin, end))
        parts.append(tuple(pieces))
        start = stop
    return parts, num_runs


def _image_counts(kept: Iterable[KeptBlock]) -> Iterator[Int64]:
    """int64: the pairs in each run of one image, in order; a run may span blocks."""
    last_image, last_count = "", 0
    for kept_block in kept:
        dropped, first = kept_block.dropped_pairs(), 0
        for rows in kept_block.block.rows(("image_id", "text_key")):
            counts = num_texts(rows)
            ends = first + np.cumsum(counts)
            if len(dropped):
                num_dropped = np.searchsorted(dropped, np.concatenate([[first], ends]))
                counts = counts - np.diff(num_dropped)
            first = int(ends[-1])
            ids = rows["image_id"]
            if not counts.all():
                ids, counts = ids.filter(arrow_of(counts > 0)), counts[counts > 0]
            if not len(ids):
                continue
            starts = image_starts(ids)
            run_counts = np.add.reduceat(counts, starts)
            if ids[0].as_py() == last_image:
                run_counts[0] += last_count
            elif last_count:
                yield np.array([last_count])
            last_image, last_count = ids[-1].as_py(), int(run_counts[-1])
            yield run_counts[:-1]
    if last_count:
        yield np.array([last_count])
