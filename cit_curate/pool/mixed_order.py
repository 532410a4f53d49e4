"""The order in which a lane scans several pools: each pool's own, interleaved in its share."""

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
    seed, pass after pass. Which pool gives the n-th caption is `Interleave`'s to say, so two
    integers say where the scan stands in every pool. Each pool has a window of its own in memory.

    A *pass* of the mixture ends when every pool was gone through at least once; meanwhile those
    that have fewer captions than their share begin again. `max_passes`, `pool_passes` and the
    rule of a shortfall count these passes. Of one pool it is the pool's pass.

    Attributes:
        length: Captions of one pass of this lane.
        names: The pools.
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
        """Plan the scan; arguments and errors are those of `ScanOrder`."""
        self.names = tuple(each.name for each in mixture)
        self._pools = tuple(each.pool for each in mixture)
        self._tokens_of: str | None = None
        self._interleave = mixture.interleave
        self._orders = tuple(
            ScanOrder(
                each.pool, seed=seed, lane=lane, num_lanes=num_lanes, order=order, texts=texts
            )
            for each in mixture
        )
        self.length = max(
            self._interleave.captions_until(number, own.length)
            for number, own in enumerate(self._orders)
        )

    def take_tokens(self, key: str) -> None:
        """Give rows with their tokens from here on, if every pool keeps those of this tokenizer.

        Args:
            key: `TextEncoder.tokenizer_key`.
        """
        if key == self._tokens_of:
            return
        self._tokens_of = key
        found = [pool.token_files(key) for pool in self._pools]
        has_all = all(tokens is not None for tokens in found)
        for own, tokens in zip(self._orders, found, strict=True):
            own.take_tokens(tokens if has_all else None)

    def batches(
        self, cursor: PoolCursor, batch_size: int, limit: int | None = None
    ) -> Iterator[CaptionBatch]:
        """Captions from `cursor` on, without end; rows have the column `pool` besides.

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

    def repeats(self, num_captions: int) -> int:
        """How often the same caption may come in the first `num_captions`: in the smallest pool."""
        given = self._interleave.given(num_captions)
        return max(-(-int(n) // own.length) for n, own in zip(given, self._orders, strict=True))

    def _rows(self, start: int, stop: int) -> pa.Table:
        """The pairs at scan positions start to stop - 1, with the names of their pools."""
        firsts, ends = self._interleave.given(start), self._interleave.given(stop)
        numbers = self._interleave.numbers(start, stop)
        tables = [
            _with_pool(own.rows(int(first), int(end)), name)
            for own, name, first, end in zip(self._orders, self.names, firsts, ends, strict=True)
            if end > first
        ]
        if len(tables) == 1:
            return tables[0]
        # The tables hold pool after pool; the n-th caption of a pool goes where its n-th turn is.
        places = np.empty(stop - start, dtype=np.int64)
        places[np.argsort(numbers, kind="stable")] = np.arange(stop - start)
        return pa.concat_tables(tables).combine_chunks().take(pa.array(places))


def _with_pool(rows: pa.Table, name: str) -> pa.Table:
    return rows.append_column("pool", pa.repeat(pa.scalar(name, pa.string()), len(rows)))
