"""The pairs of a block that a pool leaves out, or has under another key or image id."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, strings_of
from cit_curate.records import Int64


@dataclass(frozen=True)
class Changes:
    """What becomes of some pairs of a block; all others stay as they were read.

    Attributes:
        pair: int64 [changes], the pairs, ascending.
        number: int64 [changes], 0 = the pair is left out, 1 = its text key stays, 2 or more = the
            number behind its text key.
        num_prefixes: int64 [changes], how often the prefix comes before its image id.
        prefix: The prefix.
    """

    pair: Int64
    number: Int64
    num_prefixes: Int64
    prefix: str = ""

    @property
    def dropped(self) -> Int64:
        """int64: the pairs that are left out, ascending."""
        dropped: Int64 = self.pair[self.number == 0]
        return dropped

    def between(self, start: int, stop: int) -> "Changes":
        """The changes of the pairs `start` to `stop` - 1, counted from `start`."""
        low, high = np.searchsorted(self.pair, [start, stop]).tolist()
        return Changes(
            self.pair[low:high] - start,
            self.number[low:high],
            self.num_prefixes[low:high],
            self.prefix,
        )

    def applied(self, pairs: pa.Table) -> pa.Table:
        """The pairs that stay of a table whose rows are counted from 0, as they become."""
        numbers = np.ones(len(pairs), np.int64)
        numbers[self.pair] = self.number
        if "text_key" in pairs.column_names:
            keys = numbered(pairs["text_key"].combine_chunks(), numbers)
            pairs = _with_column(pairs, "text_key", keys)
        if "image_id" in pairs.column_names:
            ids = self.with_prefixes(pairs["image_id"].combine_chunks(), self.pair)
            pairs = _with_column(pairs, "image_id", ids)
        return pairs if numbers.all() else pairs.filter(arrow_of(numbers > 0))

    def with_prefixes(self, ids: pa.Array, rows: Int64) -> pa.Array:
        """Image ids with their prefixes.

        Args:
            ids: string [rows].
            rows: int64 [changes], the row of each change.
        """
        times = np.zeros(len(ids), np.int64)
        times[rows] = self.num_prefixes
        prefix = strings_of([self.prefix])[0]
        while times.any():
            prefixed = pc.binary_join_element_wise(prefix, ids, "/")
            ids = pc.if_else(arrow_of(times > 0), prefixed, ids)
            times = np.maximum(times - 1, 0)
        return ids


def numbered(keys: pa.Array, numbers: Int64) -> pa.Array:
    """Text keys with their numbers: string [rows]; `caption`, then `caption-2` and so on."""
    has_number = numbers > 1
    if not has_number.any():
        return keys
    with_number = pc.binary_join_element_wise(keys, arrow_of(numbers).cast(pa.string()), "-")
    return pc.if_else(arrow_of(has_number), with_number, keys)


def _with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)


def write_changes(path: Path, changes: Changes) -> None:
    """Write the changes of a block, all but the prefix."""
    columns = np.stack([changes.pair, changes.number, changes.num_prefixes])
    with path.open("wb") as file:
        np.save(file, columns, allow_pickle=False)


def read_changes(path: Path | None, prefix: str) -> Changes:
    """The changes of a block; none without a file."""
    columns = np.zeros((3, 0), np.int64) if path is None else np.load(path, allow_pickle=False)
    pair, number, num_prefixes = columns
    return Changes(pair, number, num_prefixes, prefix)
