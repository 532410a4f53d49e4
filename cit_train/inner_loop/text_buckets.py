"""Captions grouped by length: less padding, at the cost of more and smaller passes."""

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def length_buckets(lengths: Int64, num_buckets: int) -> list[Int64]:
    """Split captions by length so that as few tokens as possible are padding.

    A bucket is padded to its longest caption. The split into consecutive lengths is optimal, by
    dynamic programming over the distinct lengths.

    Args:
        lengths: int64 [captions], the tokens of each caption.
        num_buckets: The most buckets.

    Returns:
        int64 [captions of the bucket] per bucket: rows, shorter captions first, ties in their
        original order. No bucket is empty.

    Raises:
        ValueError: `num_buckets` is below 1.
    """
    if num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets}; it must be at least 1")
    order = np.argsort(lengths, kind="stable")
    distinct, counts = np.unique(lengths, return_counts=True)
    ends = np.cumsum(counts)  # captions up to each distinct length
    cuts = _best_cuts(distinct, ends, min(num_buckets, len(distinct)))
    return np.split(order, [int(ends[cut]) for cut in cuts])


def _best_cuts(distinct: Int64, ends: Int64, num_buckets: int) -> list[int]:
    """The indices of the distinct lengths that end a bucket, without the last bucket's."""
    starts = np.concatenate([[0], ends[:-1]])  # captions before each distinct length
    # cost[last]: tokens of the best split of the lengths up to `last`; first[last]: where its last
    # bucket begins.
    cost = distinct * ends
    firsts = []
    for _ in range(1, num_buckets):
        # totals[last, first]: a bucket of first … last after the best split of the lengths before.
        before = np.concatenate([[0], cost[:-1]])
        totals = before[None, :] + distinct[:, None] * (ends[:, None] - starts[None, :])
        totals = np.where(np.tri(len(distinct), dtype=bool), totals, np.iinfo(np.int64).max)
        firsts.append(totals.argmin(1))
        cost = totals.min(1)
    cuts: list[int] = []
    last = len(distinct) - 1
    for first in reversed(firsts):
        begin = int(first[last])
        if begin == 0:
            break
        last = begin - 1
        cuts.append(last)
    return cuts[::-1]
