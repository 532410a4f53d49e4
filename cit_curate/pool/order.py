"""One lane's scan of a pool, in the order of its plan, with one window in memory."""

import numpy as np
import pyarrow as pa

from cit_curate.config import Order, Texts
from cit_curate.errors import ConfigError
from cit_curate.pool.pool import Pool
from cit_curate.pool.scan_plan import PlannedWindow, ScanPlan
from cit_curate.pool.token_files import TokenFiles
from cit_curate.pool.window import Window
from cit_curate.records import Int64

# Pairs taken out of a window at once; batches of 2,048 take three times as long.
ROWS_AT_ONCE = 16_384


class ScanOrder:
    """One lane's endless scan of a pool.

    Attributes:
        length: The captions of one pass of this lane.
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
        """Plan the scan; nothing is read yet. See `ScanPlan` for the arguments.

        Raises:
            ValueError: See `ScanPlan`.
            ConfigError: There are more lanes than row groups.
        """
        self._plan = ScanPlan(
            pool.row_groups, seed=seed, lane=lane, num_lanes=num_lanes, order=order, texts=texts
        )
        if num_lanes > len(pool.row_groups):
            raise ConfigError(
                f"{num_lanes} lanes, but {pool.location} has only {len(pool.row_groups)} row "
                "groups to share out; use fewer lanes or a larger pool"
            )
        self.length = self._plan.length
        self._pool = pool
        self._tokens: TokenFiles | None = None
        # The latest results: the windows of a pass, one window, its rows in the order of the pass,
        # and a block of pairs.
        self._windows: tuple[int, tuple[PlannedWindow, ...]] | None = None
        self._window: Window | None = None
        self._rows: tuple[tuple[int, int], Int64] | None = None
        self._block: tuple[tuple[int, int, int], pa.Table] | None = None

    def take_tokens(self, tokens: TokenFiles | None) -> None:
        """Add the tokens of captions to the rows from here on, or leave them out."""
        if tokens != self._tokens:
            self._tokens, self._window, self._block = tokens, None, None

    def rows(self, start: int, stop: int) -> pa.Table:
        """The pairs at scan positions `start` to `stop` - 1, counted over all passes.

        Raises:
            DamagedError: A part cannot be read.
        """
        pieces = []
        while start < stop:
            pass_index, position = divmod(start, self.length)
            windows = self._windows_of(pass_index)
            ends = np.cumsum([window.captions for window in windows])
            number = int(np.searchsorted(ends, position, side="right"))
            first = position - (int(ends[number]) - windows[number].captions)
            within = first % ROWS_AT_ONCE
            block = self._block_at(pass_index, number, first - within)
            pieces.append(block.slice(within, stop - start))
            start += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else pa.concat_tables(pieces).combine_chunks()

    def _block_at(self, pass_index: int, number: int, first: int) -> pa.Table:
        """The pairs `first` to `first + ROWS_AT_ONCE` - 1 of a window; fewer at its end."""
        key = (pass_index, number, first)
        if self._block is None or self._block[0] != key:
            rows = self._rows_of(pass_index, number)[first : first + ROWS_AT_ONCE]
            self._block = (key, self._load(pass_index, number).take(rows))
        return self._block[1]

    def _windows_of(self, pass_index: int) -> tuple[PlannedWindow, ...]:
        if self._windows is None or self._windows[0] != pass_index:
            self._windows = (pass_index, tuple(self._plan.windows(pass_index)))
        return self._windows[1]

    def _load(self, pass_index: int, number: int) -> Window:
        groups = self._windows_of(pass_index)[number].groups
        if self._window is None or self._window.groups != groups:
            self._window = None  # Free the last window before the next one is read.
            self._window = Window(self._pool, groups, self._tokens)
        return self._window

    def _rows_of(self, pass_index: int, number: int) -> Int64:
        """int64 [captions]: the window's rows, in the order that this pass takes them."""
        key = (pass_index, number)
        if self._rows is None or self._rows[0] != key:
            bounds = self._load(pass_index, number).bounds
            self._rows = (key, self._plan.rows(pass_index, number, bounds))
        return self._rows[1]
