"""The order in which a lane scans several pools: their own orders, interleaved by share."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from cit_curate.config import Order, Texts
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.order import ScanOrder
from cit_curate.records import CaptionBatch, PoolCursor


class MixedOrder:
    """One lane's endless scan of a mixture.

    The captions of each pool come in exactly the order of a scan of that pool alone with the same
    seed, pass after pass. `Interleave` decides which pool supplies the n-th caption, so two
    integers determine the position in every pool. Each pool has its own window in memory.

    A *pass* of the mixture ends when every pool was scanned at least once; meanwhile pools with
    fewer captions than their share start again. `max_passes`, `pool_passes` and the shortfall rule
    count these passes. For a single pool it is the pool's pass.

    Attributes:
        length: Captions of one pass of this lane.
        names: Names of the pools.
    """

    def __init__(
        self,
        mixture: PoolMixture,
        *,
        seed: int,
        lane: int = 0,
        num_lanes: int = 1,
        order: Order = "shuffled",
        texts: Texts = "one",
    ) -> None:
        """Plan the scan; for arguments and errors see `ScanOrder`."""
        self.names = tuple(member.name for member in mixture)
        self._pools = tuple(member.pool for member in mixture)
        self._tokens_of: str | None = None
        self._interleave = mixture.interleave
        self._orders = tuple(
            ScanOrder(
                member.pool, seed=seed, lane=lane, num_lanes=num_lanes, order=order, texts=texts
            )
            for member in mixture
        )
        self.length = max(
            self._interleave.captions_until(number, scan.length)
            for number, scan in enumerate(self._orders)
        )

    def take_tokens(self, key: str) -> None:
        """Add tokens to the rows from here on, if every pool has those of this tokenizer.

        Args:
            key: `TextEncoder.tokenizer_key`.
        """
        if key == self._tokens_of:
            return
        self._tokens_of = key
        files = [pool.token_files(key) for pool in self._pools]
        has_all = all(tokens is not None for tokens in files)
        for scan, tokens in zip(self._orders, files, strict=True):
            scan.take_tokens(tokens if has_all else None)

    def batches(
        self, cursor: PoolCursor, batch_size: int, limit: int | None = None
    ) -> Iterator[CaptionBatch]:
        """Captions from `cursor` on, without end; the rows also have the column `pool`.

        Args:
            cursor: The start; `PoolCursor()` is the beginning.
            batch_size: Captions of a batch.
            limit: Captions in total; the last batch may then be short. None = no end.

        Raises:
            ValueError: The cursor is outside a pass of this lane, or `batch_size` is below 1.
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

    def repeats(self, num_captions: int) -> int:
        """The most often that one caption can occur among the first `num_captions`."""
        counts = self._interleave.given(num_captions)
        return max(-(-int(n) // scan.length) for n, scan in zip(counts, self._orders, strict=True))

    def _rows(self, start: int, stop: int) -> pa.Table:
        """The pairs at scan positions start to stop - 1, with the names of their pools."""
        firsts, ends = self._interleave.given(start), self._interleave.given(stop)
        numbers = self._interleave.numbers(start, stop)
        tables = [
            _with_pool(scan.rows(int(first), int(end)), name)
            for scan, name, first, end in zip(self._orders, self.names, firsts, ends, strict=True)
            if end > first
        ]
        if len(tables) == 1:
            return tables[0]
        # The tables come pool by pool; this brings their rows into the order of `numbers`.
        order = np.empty(stop - start, dtype=np.int64)
        order[np.argsort(numbers, kind="stable")] = np.arange(stop - start)
        return pa.concat_tables(tables).combine_chunks().take(pa.array(order))


def _with_pool(rows: pa.Table, name: str) -> pa.Table:
    return rows.append_column("pool", pa.repeat(pa.scalar(name, pa.string()), len(rows)))
