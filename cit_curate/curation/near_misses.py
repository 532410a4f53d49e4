"""The best captions of each metadata entry that were not kept, collected during a scan."""

import numpy as np
import pyarrow as pa

from cit_curate.curation.selection import best_per_entry
from cit_curate.records import Float32, Int64

# Waiting rows are merged once they are this many, and a quarter of the known rows: with 20,000
# entries of 5 rows each, sorting 100,000 rows for every batch of 2,048 costs more than reading.
SORTED_AT_ONCE = 4_096


class NearMisses:
    """The rows with the highest similarities of each entry.

    Rows are added in scan order; of equal similarities the first one stays.
    """

    def __init__(self, rows: pa.Table, *, best: int) -> None:
        """Start from known rows.

        Args:
            rows: A table with scan_position, similarity and metadata_id, as `rows` returns it.
            best: The number of rows of an entry.
        """
        self._best = best
        self._known = rows
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._bar = self._bars()

    @property
    def rows(self) -> pa.Table:
        """The rows by entry, then best first; at most `best` of an entry."""
        if self._num_waiting:
            rows = pa.concat_tables([self._known, *self._waiting])
            self._known = rows.take(
                best_per_entry(_similarity(rows), _entry(rows), _position(rows), best=self._best)
            )
            self._waiting, self._num_waiting = [], 0
            self._bar = self._bars()
        return self._known

    def add(self, missed: pa.Table) -> None:
        """Add rows that were scanned after all others."""
        entry = _entry(missed)
        if len(entry) and (largest := int(entry.max())) >= len(self._bar):
            room = largest + 1 - len(self._bar)
            self._bar = np.concatenate([self._bar, np.full(room, -np.inf, dtype=np.float32)])
        # Not >=: of equals the earlier one stays, which is known already.
        better = missed.filter(_similarity(missed) > self._bar[entry])
        if len(better):
            self._waiting.append(better)
            self._num_waiting += len(better)
        if self._num_waiting >= max(SORTED_AT_ONCE, len(self._known) // 4):
            _ = self.rows

    def _bars(self) -> Float32:
        """float32 [entries]: the similarity that a row must exceed; -inf where there is room."""
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
