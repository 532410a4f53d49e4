"""The order in which a lane scans the pool: a pure function of (seed, pass, lane, number of lanes).

Row groups are dealt to the lanes round-robin. A pass goes through the lane's row groups window by
window. A pool under `EXACT_POOL_ROWS` rows is one window, so its order is an exact uniform
permutation; a larger one takes its parts in random order, `WINDOW_PARTS` at a time, and permutes
within them (a stated deviation from one uniform permutation, for bounded memory).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cit_curate.config import Order, Texts
from cit_curate.errors import ConfigError
from cit_curate.pool.pool import Pool
from cit_curate.pool.token_files import TokenFiles
from cit_curate.pool.window import Window
from cit_curate.records import CaptionBatch, Int64, PoolCursor

EXACT_POOL_ROWS = 1_000_000
WINDOW_PARTS = 16
# Pairs that are taken out of a window together: by batches of 2,048 it takes three times as long.
ROWS_AT_ONCE = 16_384

# First part of every random key, so that no two uses share a stream.
_PARTS, _PERMUTATION, _TEXTS = 1, 2, 3


@dataclass(frozen=True)
class _Planned:
    """Row groups that are in memory together, and the captions that a pass takes from them."""

    groups: tuple[int, ...]
    captions: int


class ScanOrder:
    """One lane's endless scan of a pool.

    Attributes:
        length: Captions of one pass of this lane.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        seed: int,
        lane: int = 0,
        num_lanes: int = 1,
        order: Order = "shuffled",
        texts: Texts = "one",
    ) -> None:
        """Plan the scan; nothing is read yet.

        Args:
            pool: The pool.
            seed: Not negative.
            lane: This lane, from 0.
            num_lanes: All lanes; row group g belongs to lane `g % num_lanes`.
            order: `shuffled`: another order every pass; `sequential`: as the files have it.
            texts: `one`: per image and visit one of its texts at random; `every`: all of them.

        Raises:
            ValueError: The seed or the lane is out of range.
            ConfigError: There are more lanes than row groups.
        """
        if seed < 0 or not 0 <= lane < num_lanes:
            raise ValueError(
                f"seed {seed}, lane {lane} of {num_lanes}: seeds start at 0, 0 <= lane < lanes"
            )
        if order not in ("shuffled", "sequential") or texts not in ("one", "every"):
            raise ValueError(f"order {order!r}, texts {texts!r}: shuffled|sequential and one|every")
        if num_lanes > len(pool.row_groups):
            raise ConfigError(
                f"{num_lanes} lanes, but {pool.location} has only {len(pool.row_groups)} row "
                "groups to share out; use fewer lanes or a larger pool"
            )
        self._pool = pool
        self._seed = seed
        self._lane = lane
        self._order = order
        self._texts = texts
        self._exact = pool.num_pairs < EXACT_POOL_ROWS
        self._groups = tuple(range(lane, len(pool.row_groups), num_lanes))
        self._tokens: TokenFiles | None = None
        self._plan: tuple[int, tuple[_Planned, ...]] | None = None
        self._loaded: Window | None = None
        self._taken: tuple[tuple[int, int, int], pa.Table] | None = None
        self._visit: tuple[tuple[int, int], Int64] | None = None
        self.length = sum(self._captions(group) for group in self._groups)

    def take_tokens(self, tokens: TokenFiles | None) -> None:
        """Give rows with their tokens from here on, or without."""
        if tokens != self._tokens:
            self._tokens, self._loaded, self._taken = tokens, None, None

    def batches(
        self, cursor: PoolCursor, batch_size: int, limit: int | None = None
    ) -> Iterator[CaptionBatch]:
        """Captions from `cursor` on, without end: batches run on across the pass boundary.

        Args:
            cursor: Where to start; `PoolCursor()` is the beginning.
            batch_size: Captions of a batch.
            limit: Captions in all; the last batch is short then. None: no end.

        Raises:
            ValueError: The cursor does not lie in a pass of this lane, or the batch is empty.
            DamagedError: A part cannot be read.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it is at least 1")
        if cursor.pass_index < 0 or not 0 <= cursor.position <= self.length:
            raise ValueError(f"{cursor} is outside this lane's pass of {self.length:,} captions")
        start = cursor.pass_index * self.length + cursor.position
        end = None if limit is None else start + limit
        while end is None or start < end:
            stop = start + batch_size if end is None else min(start + batch_size, end)
            scan_position = np.arange(start, stop, dtype=np.int64)
            pass_index, position = np.divmod(scan_position, self.length)
            yield CaptionBatch(
                rows=self._rows(start, stop),
                pass_index=pass_index,
                position=position,
                scan_position=scan_position,
                cursor=PoolCursor(*divmod(stop, self.length)),
            )
            start = stop

    def _rows(self, start: int, stop: int) -> pa.Table:
        """The pairs at scan positions start to stop - 1."""
        pieces = []
        while start < stop:
            pass_index, position = divmod(start, self.length)
            windows = self._windows(pass_index)
            ends = np.cumsum([window.captions for window in windows])
            number = int(np.searchsorted(ends, position, side="right"))
            window = windows[number]
            first = position - (int(ends[number]) - window.captions)
            within = first % ROWS_AT_ONCE
            block = self._block(pass_index, number, window, first - within)
            pieces.append(block.slice(within, stop - start))
            start += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else pa.concat_tables(pieces).combine_chunks()

    def _block(self, pass_index: int, number: int, window: _Planned, first: int) -> pa.Table:
        """Pairs first to first + ROWS_AT_ONCE - 1 of a window, fewer at its end."""
        place = (pass_index, number, first)
        if self._taken is None or self._taken[0] != place:
            rows = self._order_in(pass_index, number, window)[first : first + ROWS_AT_ONCE]
            self._taken = (place, self._load(window).take(rows))
        return self._taken[1]

    def _windows(self, pass_index: int) -> tuple[_Planned, ...]:
        if self._plan is None or self._plan[0] != pass_index:
            self._plan = (pass_index, tuple(self._planned(pass_index)))
        return self._plan[1]

    def _planned(self, pass_index: int) -> Iterator[_Planned]:
        if self._exact:
            yield self._window(self._groups)
            return
        parts = np.arange(len(self._pool.parts))
        if self._order == "shuffled":
            # Without the lane: all lanes read the same parts at about the same time.
            parts = np.random.default_rng((self._seed, _PARTS, pass_index)).permutation(parts)
        of_part: dict[int, list[int]] = {}
        for group in self._groups:
            of_part.setdefault(self._pool.row_groups[group].part, []).append(group)
        for first in range(0, len(parts), WINDOW_PARTS):
            some = parts[first : first + WINDOW_PARTS].tolist()
            groups = tuple(group for part in some for group in of_part.get(part, ()))
            if groups:
                yield self._window(groups)

    def _window(self, groups: tuple[int, ...]) -> _Planned:
        return _Planned(groups, sum(self._captions(group) for group in groups))

    def _captions(self, group: int) -> int:
        row_group = self._pool.row_groups[group]
        return row_group.images if self._texts == "one" else row_group.rows

    def _load(self, planned: _Planned) -> Window:
        if self._loaded is None or self._loaded.groups != planned.groups:
            self._loaded = None  # Let go of the last window before the next one is read.
            self._loaded = Window(self._pool, planned.groups, self._tokens)
        return self._loaded

    def _order_in(self, pass_index: int, number: int, window: _Planned) -> Int64:
        """int64 [captions]: the window's rows, in the order that this pass takes them."""
        if self._visit is None or self._visit[0] != (pass_index, number):
            self._visit = ((pass_index, number), self._drawn_order(pass_index, number, window))
        return self._visit[1]

    def _drawn_order(self, pass_index: int, number: int, window: _Planned) -> Int64:
        bounds = self._load(window).bounds
        key = (pass_index, self._lane, number)
        if self._texts == "one":
            # A text is chosen per image before the images are permuted: both keys stand alone.
            draw = np.random.default_rng((self._seed, _TEXTS, *key)).random(len(bounds) - 1)
            counts = np.diff(bounds)
            rows: Int64 = bounds[:-1] + np.minimum((draw * counts).astype(np.int64), counts - 1)
        else:
            rows = np.arange(bounds[-1], dtype=np.int64)
        assert len(rows) == window.captions
        if self._order == "sequential":
            return rows
        shuffled: Int64 = np.random.default_rng((self._seed, _PERMUTATION, *key)).permutation(rows)
        return shuffled
