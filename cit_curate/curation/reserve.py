"""The best captions that a scan has not kept, for when its passes end too early."""

import numpy as np
import pyarrow as pa

from cit_curate.curation.scan_rows import SCORED_SCHEMA
from cit_curate.records import Float32

_RANK = pa.field("rank", pa.float32())
RESERVE_SCHEMA = SCORED_SCHEMA.append(_RANK)
# Waiting rows, as a multiple of the size, before the best are chosen again.
_SLACK = 2


class Reserve:
    """The rows of the highest rank, at most as many as a scan has been asked for."""

    def __init__(self, rows: pa.Table | None = None) -> None:
        """Start from known rows, a table with RESERVE_SCHEMA, best first."""
        self._rows = RESERVE_SCHEMA.empty_table() if rows is None else rows

    @property
    def rows(self) -> pa.Table:
        """The rows, with RESERVE_SCHEMA, best first; of equal ranks the earlier one comes first."""
        return self._sorted(len(self._rows))

    def add(self, rows: pa.Table, rank: Float32, *, size: int) -> None:
        """Add rows that were scanned after all others, and keep the best `size`.

        Args:
            rows: A table with SCORED_SCHEMA.
            rank: float32 [rows].
            size: The rows to keep.
        """
        self._rows = pa.concat_tables([self._rows, rows.append_column(_RANK, pa.array(rank))])
        if len(self._rows) > _SLACK * size:
            self._rows = self._sorted(size)

    def take(self, count: int) -> pa.Table:
        """Remove the best rows and return them, with SCORED_SCHEMA."""
        best = self._sorted(len(self._rows))
        self._rows = best.slice(count)
        return best.slice(0, count).drop_columns(_RANK.name)

    def _sorted(self, count: int) -> pa.Table:
        rank = self._rows[_RANK.name].to_numpy()
        position = self._rows["scan_position"].to_numpy()
        return self._rows.take(np.lexsort((position, -rank))[:count])
