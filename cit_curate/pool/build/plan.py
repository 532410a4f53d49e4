"""What a pool keeps of its blocks, and where its parts are cut; from the keys alone.

Held: a few numbers for each block and part, and of one block at a time the keys. Where an image may
repeat, DuckDB looks for it out of core. Which pairs are left out lies in a file for each block.
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
    """What a pool keeps of a block: `num_pairs`, all but those that the file `dropped` names."""

    block: Block
    num_pairs: int
    dropped: Path | None = None

    def dropped_pairs(self) -> Int64:
        """int64: the pairs that are left out, in order."""
        if self.dropped is None:
            return np.zeros(0, np.int64)
        pairs: Int64 = np.load(self.dropped, allow_pickle=False)
        return pairs


@dataclass(frozen=True)
class Piece:
    """The pairs `start` to `stop` of those that are kept of a block."""

    kept: KeptBlock
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """What a pool keeps.

    Attributes:
        kept: What is kept of each block.
        num_pairs: Pairs of all of them.
        max_rows: Most rows of a row group.
        num_repeats: Keys that came before.
        num_rows: Rows of the sources, those without a text included.
        num_images: Different images in them.
        parts: The pieces of each part; None = rows of an image are scattered, and must be brought
            together first.
        staging: The keys; None = no image repeats.
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
    """Give the plan of a pool while the block runs.

    Args:
        blocks: What was read, in order.
        folder: A folder for the plan's own files; it is not there yet, and is removed.
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
        num_pairs = sum(each.num_pairs for each in kept)
        # A pair that repeats another counts, as ever; but not one of a row that is left out whole.
        max_rows = group_rows(
            sum(k.num_pairs if k.block.row_is_image else k.block.num_pairs for k in kept)
        )
        parts, num_runs = _parts(kept, max_rows)
        in_order = staging is None or num_runs == staging.num_images(with_text=True)
        found = parts if in_order else None
        yield Plan(kept, num_pairs, max_rows, num_repeats, num_rows, num_images, found, staging)


def _no_image_repeats(blocks: Sequence[Block]) -> bool:
    bounds = [block.ids for block in blocks if block.num_rows]
    rises = (a and b and comes_before(a[1], b[0]) for a, b in pairwise(bounds))
    return None not in bounds and all(rises)


def _kept(blocks: Sequence[Block], staging: Staging | None, folder: Path) -> Iterator[KeptBlock]:
    """What is kept of each block, but for the repeats that `staging` knows."""
    first = 0
    for number, block in enumerate(blocks):
        num_keys = block.num_rows if block.row_is_image else block.num_pairs
        again = staging.repeats(first, first + num_keys) if staging else ()
        first += num_keys
        if not len(again):
            yield KeptBlock(block, block.num_pairs)
            continue
        if block.row_is_image:
            is_dropped = np.zeros(num_keys, np.bool_)
            is_dropped[again] = True
            counts = [num_texts(rows) for rows in block.rows(("text_key",))]
            again = np.flatnonzero(np.repeat(is_dropped, np.concatenate(counts)))
        path = folder / f"dropped-{number:06d}.npy"
        with path.open("wb") as stream:
            np.save(stream, again, allow_pickle=False)
        yield KeptBlock(block, block.num_pairs - len(again), path)


def _parts(kept: Sequence[KeptBlock], max_rows: int) -> tuple[list[tuple[Piece, ...]], int]:
    """The pieces of each part, and how often the image changes from a pair to the next, plus 1."""
    num_runs = 0

    def counted() -> Iterator[Int64]:
        nonlocal num_runs
        for counts in _image_counts(kept):
            num_runs += len(counts)
            yield counts

    firsts = np.concatenate([[0], np.cumsum([each.num_pairs for each in kept], dtype=np.int64)])
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
    """int64: the pairs of each image, as they come; an image may go on from block to block."""
    last_image, last_count = "", 0
    for each in kept:
        dropped, first = each.dropped_pairs(), 0
        for rows in each.block.rows(("image_id", "text_key")):
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
            of_images = np.add.reduceat(counts, starts)
            if ids[0].as_py() == last_image:
                of_images[0] += last_count
            elif last_count:
                yield np.array([last_count])
            last_image, last_count = ids[-1].as_py(), int(of_images[-1])
            yield of_images[:-1]
    if last_count:
        yield np.array([last_count])
