"""The pairs that a pool keeps of its blocks, and where its parts are cut; from the keys alone.

Memory holds a few numbers for each block and part, and the keys of one block at a time. Where an
image or a text key of one may repeat, DuckDB finds repeats out of core. A file for each block lists
the pairs that are dropped, and those that get another key.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from cit_curate.arrow_numpy import arrow_of
from cit_curate.pool.build.blocks import Block, comes_before
from cit_curate.pool.build.changes import Changes, read_changes, write_changes
from cit_curate.pool.build.numbering import Numbered
from cit_curate.pool.build.staging import Staging
from cit_curate.pool.format import group_rows
from cit_curate.pool.parts import image_starts, part_ends
from cit_curate.records import Int64
from cit_curate.sources.rows import num_texts


@dataclass(frozen=True)
class KeptBlock:
    """The `num_pairs` pairs kept of a block; the file `changed` lists what becomes of the others.

    `prefix` comes before image ids that other sources have too.
    """

    block: Block
    num_pairs: int
    changed: Path | None = None
    prefix: str = ""

    def changes(self) -> Changes:
        """What becomes of the pairs that are dropped or changed."""
        return read_changes(self.changed, self.prefix)


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
        numbered: What became of the keys that repeat an earlier one.
        num_rows: Rows of the sources, those without a text included.
        num_images: Distinct images in them.
        parts: The pieces of each part; None where the rows of an image are scattered, and must be
            brought together first.
        staging: The database of keys; None if no image and no key of one repeats.
    """

    kept: tuple[KeptBlock, ...]
    num_pairs: int
    max_rows: int
    numbered: Numbered
    num_rows: int
    num_images: int
    parts: list[tuple[Piece, ...]] | None
    staging: Staging | None


@contextmanager
def planned(blocks: Sequence[Block], folder: Path, places: Mapping[str, str]) -> Iterator[Plan]:
    """The plan of a pool, valid while the block runs.

    Args:
        blocks: The blocks of all sources, in order.
        folder: A new folder for the plan's own files; it is removed at the end.
        places: The path of each source, by its name.
    """
    num_images = num_rows = sum(block.num_rows for block in blocks)
    numbered, staging = Numbered({}), None
    with ExitStack() as opened:
        if not _nothing_repeats(blocks):
            staging = opened.enter_context(closing(Staging(folder, places)))
            for block in blocks:
                staging.add(block)
            numbered = staging.find_changes()
            num_images = staging.num_images(with_text=False)
        kept = tuple(_kept(blocks, staging, folder))
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
            numbered=numbered,
            num_rows=num_rows,
            num_images=num_images,
            parts=parts if in_order else None,
            staging=staging,
        )


def _nothing_repeats(blocks: Sequence[Block]) -> bool:
    bounds = [block.ids for block in blocks if block.num_rows]
    rises = (a and b and comes_before(a[1], b[0]) for a, b in pairwise(bounds))
    repeats_key = any(block.repeats_key for block in blocks)
    return None not in bounds and all(rises) and not repeats_key


def _kept(blocks: Sequence[Block], staging: Staging | None, folder: Path) -> Iterator[KeptBlock]:
    """The kept pairs of each block, with the changes in `staging`."""
    first = 0
    for number, block in enumerate(blocks):
        num_keys = block.num_rows if block.row_is_image else block.num_pairs
        changes = staging.changes(first, first + num_keys) if staging else None
        first += num_keys
        if staging is None or changes is None or not len(changes.pair):
            yield KeptBlock(block, block.num_pairs)
            continue
        if block.row_is_image:
            changes = _of_pairs(changes, block)
        path = folder / f"changes-{number:06d}.npy"
        write_changes(path, changes)
        num_pairs = block.num_pairs - len(changes.dropped)
        yield KeptBlock(block, num_pairs, path, staging.prefix(block))


def _of_pairs(changes: Changes, block: Block) -> Changes:
    """The changes of all pairs of dropped rows."""
    is_dropped = np.zeros(block.num_rows, np.bool_)
    is_dropped[changes.dropped] = True
    counts = [num_texts(rows) for rows in block.rows(("text_key",))]
    pairs = np.flatnonzero(np.repeat(is_dropped, np.concatenate(counts)))
    return Changes(pairs, np.zeros_like(pairs), np.zeros_like(pairs))


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
        changes, first = kept_block.changes(), 0
        for rows in kept_block.block.rows(("image_id", "text_key")):
            counts, ids = num_texts(rows), rows["image_id"]
            ends = np.cumsum(counts)
            of_rows = changes.between(first, first + int(ends[-1]))
            first += int(ends[-1])
            if len(of_rows.pair):
                ids = of_rows.with_prefixes(ids, np.searchsorted(ends, of_rows.pair, side="right"))
                num_dropped = np.searchsorted(of_rows.dropped, np.concatenate([[0], ends]))
                counts = counts - np.diff(num_dropped)
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
