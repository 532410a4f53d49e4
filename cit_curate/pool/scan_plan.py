"""The order in which a lane scans a pool: a pure function of (seed, pass, lane, number of lanes).

Row groups are dealt to the lanes round-robin. A pass goes through the lane's row groups window by
window. A pool under `EXACT_POOL_ROWS` rows is one window, so its order is an exact uniform
permutation. A larger pool takes its parts in random order, `WINDOW_PARTS` at a time, and permutes
within them: a deliberate deviation from one uniform permutation, for bounded memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cit_curate.config import Order, Texts
from cit_curate.pool.format import RowGroup
from cit_curate.records import Int64

EXACT_POOL_ROWS = 1_000_000
WINDOW_PARTS = 16

# First part of every random key, so that no two uses share a sequence of numbers.
_PARTS, _PERMUTATION, _TEXTS = 1, 2, 3


@dataclass(frozen=True)
class PlannedWindow:
    """Row groups that are in memory together, and the captions that a pass takes from them."""

    groups: tuple[int, ...]
    captions: int


class ScanPlan:
    """The scan of one lane, as arithmetic on row groups and rows.

    Attributes:
        length: The captions of one pass of this lane.
    """

    def __init__(
        self,
        row_groups: Sequence[RowGroup],
        *,
        seed: int,
        lane: int,
        num_lanes: int,
        order: Order,
        texts: Texts,
    ) -> None:
        """Plan a scan.

        Args:
            row_groups: Every row group of the pool.
            seed: The seed of all random orders, at least 0.
            lane: This lane, from 0.
            num_lanes: The number of lanes; row group g belongs to lane `g % num_lanes`.
            order: `shuffled`: another order in every pass; `sequential`: the order of the files.
            texts: `one`: a random text of each image per visit; `every`: all of them.

        Raises:
            ValueError: The seed or the lane is out of range, or `order` or `texts` is unknown.
        """
        if seed < 0 or not 0 <= lane < num_lanes:
            raise ValueError(
                f"seed {seed}, lane {lane} of {num_lanes}: seeds start at 0, 0 <= lane < lanes"
            )
        if order not in ("shuffled", "sequential") or texts not in ("one", "every"):
            raise ValueError(f"order {order!r}, texts {texts!r}: shuffled|sequential and one|every")
        self._row_groups = row_groups
        self._seed, self._lane = seed, lane
        self._order, self._texts = order, texts
        self._is_exact = sum(group.rows for group in row_groups) < EXACT_POOL_ROWS
        self._groups = tuple(range(lane, len(row_groups), num_lanes))
        self.length = sum(self._captions(group) for group in self._groups)

    def windows(self, pass_index: int) -> Iterator[PlannedWindow]:
        """The windows of a pass, in scan order."""
        if self._is_exact:
            yield self._window(self._groups)
            return
        num_parts = 1 + max(group.part for group in self._row_groups)
        parts = np.arange(num_parts)
        if self._order == "shuffled":
            # The key has no lane: all lanes read the same parts at about the same time.
            parts = np.random.default_rng((self._seed, _PARTS, pass_index)).permutation(parts)
        of_part: dict[int, list[int]] = {}
        for group in self._groups:
            of_part.setdefault(self._row_groups[group].part, []).append(group)
        for first in range(0, num_parts, WINDOW_PARTS):
            chosen = parts[first : first + WINDOW_PARTS].tolist()
            groups = tuple(group for part in chosen for group in of_part.get(part, ()))
            if groups:
                yield self._window(groups)

    def rows(self, pass_index: int, window: int, bounds: Int64) -> Int64:
        """The rows of a window, in the order that a pass takes them.

        Args:
            pass_index: The pass.
            window: The number of the window in that pass.
            bounds: int64 [images + 1], the row where each image of the window starts, closed by the
                number of rows.

        Returns:
            int64 [captions].
        """
        key = (pass_index, self._lane, window)
        if self._texts == "one":
            # Texts are chosen before the images are permuted; the two keys are independent.
            draw = np.random.default_rng((self._seed, _TEXTS, *key)).random(len(bounds) - 1)
            counts = np.diff(bounds)
            rows: Int64 = bounds[:-1] + np.minimum((draw * counts).astype(np.int64), counts - 1)
        else:
            rows = np.arange(bounds[-1], dtype=np.int64)
        if self._order == "sequential":
            return rows
        shuffled: Int64 = np.random.default_rng((self._seed, _PERMUTATION, *key)).permutation(rows)
        return shuffled

    def _window(self, groups: tuple[int, ...]) -> PlannedWindow:
        return PlannedWindow(groups, sum(self._captions(group) for group in groups))

    def _captions(self, group: int) -> int:
        row_group = self._row_groups[group]
        return row_group.images if self._texts == "one" else row_group.rows
