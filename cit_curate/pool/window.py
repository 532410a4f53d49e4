"""Row groups that a scan holds in memory together, and the pairs it takes out of them."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from cit_curate.pool.format import pair_schema
from cit_curate.pool.parts import image_starts
from cit_curate.pool.pool import Pool
from cit_curate.pool.token_files import TokenFiles
from cit_curate.records import PAIR_COLUMNS, TOKENS, Int64

PAIRS = pa.schema([pair_schema({}).field(name) for name in PAIR_COLUMNS])
# Columns of few distinct values, which are held once; a window has a million rows.
REPEATED_COLUMNS = ("text_key", "source")


class Window:
    """Some row groups of a pool in memory, as one table whose rows are taken by number.

    The parts' tables stay separate: joining them needs twice the memory, takes longer than reading
    them, and fails where the captions have more than 2 GiB.

    Attributes:
        groups: The row groups.
    """

    def __init__(self, pool: Pool, groups: Sequence[int], tokens: TokenFiles | None = None) -> None:
        """Read the row groups, and their tokens from `tokens` if it is not None.

        Raises:
            DamagedError: A part cannot be read.
        """
        self.groups = tuple(groups)
        self._tables = [
            table.unify_dictionaries().combine_chunks()
            for table in pool.tables(groups, dictionaries=REPEATED_COLUMNS, tokens=tokens)
        ]
        self._schema = PAIRS
        if tokens is not None:
            self._schema = PAIRS.append(self._tables[0].schema.field(TOKENS))
        self._ends: Int64 = np.cumsum([len(table) for table in self._tables], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def bounds(self) -> Int64:
        """int64 [images + 1]: the row where each image starts, closed by the number of rows."""
        starts = [
            image_starts(table["image_id"]) + (end - len(table))
            for table, end in zip(self._tables, self._ends, strict=True)
        ]
        return np.concatenate([*starts, self._ends[-1:]])

    def take(self, rows: Int64) -> pa.Table:
        """The pairs at some rows, in that order: `PAIR_COLUMNS` and `tokens`, one chunk each."""
        of_row = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(of_row, kind="stable")
        numbers = range(len(self._tables))
        cuts = np.searchsorted(of_row[order], [*numbers, len(numbers)])
        taken = [
            self._taken(number, rows[order[cuts[number] : cuts[number + 1]]])
            for number in numbers
            if cuts[number + 1] > cuts[number]
        ]
        if len(taken) <= 1:
            return taken[0].combine_chunks() if taken else self._schema.empty_table()
        positions = np.empty(len(rows), dtype=np.int64)
        positions[order] = np.arange(len(rows))
        return pa.concat_tables(taken).combine_chunks().take(pa.array(positions))

    def _taken(self, number: int, rows: Int64) -> pa.Table:
        table = self._tables[number]
        first = self._ends[number] - len(table)
        return table.take(pa.array(rows - first)).cast(self._schema)
