"""The best captions that were not kept, of each metadata entry, while they are scanned."""

import numpy as np
import pyarrow as pa

from cit_curate.curation.selection import best_per_entry
from cit_curate.records import Float32, Int64

# Rows that wait are sorted in together, once they are this many and a share of those known: with
# 20,000 entries of 5 each, sorting 100,000 rows for every batch of 2,048 costs more than reading.
SORTED_AT_ONCE = 4_096


class NearMisses:
    """Keeps the rows of each entry with the highest similarities.

    Of equal similarities the one that was scanned first counts; captions come in scan order.
    """

    def __init__(self, rows: pa.Table, *, best: int) -> None:
        """Start from what is known.

        Args:
            rows: Table with scan_position, similarity and metadata_id, as `rows` gave it.
            best: How many rows an entry keeps.
        """
        self._best = best
        self._known = rows
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._bar = self._bars()

    @property
    def rows(self) -> pa.Table:
        """By entry, then best first; `best` rows of an entry at most."""
        if self._num_waiting:
            rows = pa.concat_tables([self._known, *self._waiting])
            self._known = rows.take(
                best_per_entry(_similarity(rows), _entry(rows), _position(rows), best=self._best)
            )
            self._waiting, self._num_waiting = [], 0
            self._bar = self._bars()
        return self._known

    def add(self, missed: pa.Table) -> None:
        """Take in rows that were scanned after all others."""
        entry = _entry(missed)
        if len(entry) and (largest := int(entry.max())) >= len(self._bar):
            room = largest + 1 - len(self._bar)
            self._bar = np.concatenate([self._bar, np.full(room, -np.inf, dtype=np.float32)])
        # Not >=: of equals the earlier one counts, which is known already.
        better = missed.filter(_similarity(missed) > self._bar[entry])
        if len(better):
            self._waiting.append(better)
            self._num_waiting += len(better)
        if self._num_waiting >= max(SORTED_AT_ONCE, len(self._known) // 4):
            _ = self.rows

    def _bars(self) -> Float32:
        """float32 [entries]: what a row must be above to count; -inf where there is room."""
        entry, similarity = _entry(self._known), _similarity(self._known)
        bars = np.full(int(entry.max()) + 1 if len(entry) else 0, -np.inf, dtype=np.float32)
        counts = np.bincount(entry, minlength=len(bars))
        ends = np.cumsum(counts) - 1
        full = counts == self._best
        bars[full] = similarity[ends[full]]
        return bars


def _similarity(rows: pa.Table) -> Float32:
    values: Float32 = rows["similarity"].to_numpy()
    return values


def _entry(rows: pa.Table) -> Int64:
    entries: Int64 = rows["metadata_id"].to_numpy().astype(np.int64)
    return entries


def _position(rows: pa.Table) -> Int64:
    positions: Int64 = rows["scan_position"].to_numpy()
    return positions
