"""What a YFCC pool keeps of its segments, and where its parts are cut; from small indexes alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cit_curate.pool.build.yfcc_segments import Piece, Segment
from cit_curate.pool.format import PART_ROWS
from cit_curate.records import Int64
from cit_curate.sources.yfcc import NUM_IDS, UInt8, UInt32

_HAS_LINE, _HAS_PAIR = 1, 2


@dataclass(frozen=True)
class PlannedImages:
    """What the indexes of the segments tell.

    Attributes:
        counts: uint8 [images]: pairs of each image that is kept, in the order of the lines.
        repeated: Per segment int64: which of its images came before, on another line.
        repeats: Per segment, their (ids, lines from the file's 0).
        num_listed: Lines of listed images.
        num_found: Listed images that have a line.
    """

    segments: list[Segment]
    counts: UInt8
    repeated: list[Int64]
    repeats: list[tuple[UInt32, Int64]]
    num_listed: int
    num_found: int

    @property
    def num_pairs(self) -> int:
        """Pairs of all the images."""
        return int(self.counts.sum(dtype=np.int64))


def plan_images(segments: Iterable[Segment]) -> PlannedImages:
    """Keep the first line of each image that has a text; planned as the segments come."""
    # 100 MB for any pool; a set of the ids would take 10 GB for all of YFCC100M.
    seen = np.zeros(NUM_IDS, np.uint8)
    counts, repeated, repeats = [np.zeros(0, np.uint8)], [], []
    num_listed = first_line = 0
    planned = []
    for segment in segments:
        planned.append(segment)
        index = segment.index()
        seen[index["image_id"]] |= _HAS_LINE
        num_listed += len(index)
        index = index[index["num_texts"] > 0]
        ids = index["image_id"]
        came_before = (seen[ids] & _HAS_PAIR) > 0
        if len(ids) > 1 and not (ids[1:] > ids[:-1]).all():
            is_first = np.zeros(len(ids), np.bool_)
            is_first[np.unique(ids, return_index=True)[1]] = True
            came_before |= ~is_first
        seen[ids] |= _HAS_PAIR
        again = np.flatnonzero(came_before)
        counts.append(np.delete(index["num_texts"], again))
        repeated.append(again)
        repeats.append((ids[again], index["line"][again].astype(np.int64) + first_line))
        first_line += segment.num_lines
    num_found = int(np.count_nonzero(seen))
    return PlannedImages(planned, np.concatenate(counts), repeated, repeats, num_listed, num_found)


def part_pieces(images: PlannedImages, max_rows: int) -> Iterator[tuple[Piece, ...]]:
    """The images of each part: row groups of `max_rows` at most, parts of `PART_ROWS` at most."""
    kept = [
        sum(segment.batch_rows) - len(again)
        for segment, again in zip(images.segments, images.repeated, strict=True)
    ]
    firsts = np.concatenate([[0], np.cumsum(kept)])
    for start, stop in part_bounds(images.counts, max_rows, PART_ROWS):
        low = int(np.searchsorted(firsts, start, side="right")) - 1
        high = int(np.searchsorted(firsts, stop, side="left"))
        pieces = []
        for number in range(low, high):
            first, again = int(firsts[number]), images.repeated[number]
            begin, end = max(start - first, 0), min(stop - first, kept[number])
            if begin < end:
                places = _place_of(begin, again), _place_of(end - 1, again) + 1
                pieces.append(Piece(images.segments[number], *places, again))
        yield tuple(pieces)


def _place_of(number: int, repeated: Int64) -> int:
    """Place in its segment of the image that is the `number`-th of those that are kept."""
    kept_before = repeated - np.arange(len(repeated))
    return number + int(np.searchsorted(kept_before, number, side="right"))


def part_bounds(counts: UInt8, max_rows: int, part_rows: int) -> Iterator[tuple[int, int]]:
    """First image of each part and the one after its last; groups are cut as `cut_groups` does."""
    start = place = rows = 0
    while place < len(counts):
        sums = np.cumsum(counts[place : place + max_rows], dtype=np.int64)
        taken = max(int(np.searchsorted(sums, max_rows, side="right")), 1)
        group = int(sums[taken - 1])
        if rows and rows + group > part_rows:
            yield start, place
            start, rows = place, 0
        place, rows = place + taken, rows + group
    yield start, place
