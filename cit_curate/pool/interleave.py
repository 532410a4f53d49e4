"""Which pool supplies the n-th caption: a pure function of the pools' shares.

After any n captions, pool i has supplied less than one caption more or fewer than share_i * n. This
is Tijdeman's algorithm ("The chairman assignment problem", Discrete Mathematics 32, 1980), whose
order repeats after the shares' common denominator; a table holds one period.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from cit_curate.records import Int64

# Shares are fractions of at most this denominator: four decimals, and a small table.
LARGEST_PERIOD = 10_000


class Interleave:
    """An endless sequence of pool numbers in fixed shares.

    Attributes:
        shares: The share of each pool; they sum to 1.
        period: Number of captions after which the order repeats.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        """Compute one period.

        Args:
            weights: The weight of each pool, above 0; only the ratios count. Shares with no common
                denominator up to `LARGEST_PERIOD` are rounded to that many parts.

        Raises:
            ValueError: There is no weight, one is not above 0, or a share is below one part of
                `LARGEST_PERIOD`.
        """
        parts = _whole_parts(weights)
        self.period = sum(parts)
        self.shares = tuple(Fraction(part, self.period) for part in parts)
        self._parts = np.array(parts, dtype=np.int64)
        self._numbers = _one_period(parts)
        is_pool = self._numbers == np.arange(len(parts))[:, None]
        # int64 [pools, period + 1]: captions of each pool among the first ones of a period.
        self._given = np.pad(np.cumsum(is_pool, axis=1, dtype=np.int64), ((0, 0), (1, 0)))

    def numbers(self, start: int, stop: int) -> Int64:
        """int64 [stop - start]: the pools that supply captions start to stop - 1."""
        numbers: Int64 = self._numbers[np.arange(start, stop, dtype=np.int64) % self.period]
        return numbers

    def given(self, num_captions: int) -> Int64:
        """int64 [pools]: the captions of each pool among the first `num_captions`."""
        periods, rest = divmod(num_captions, self.period)
        counts: Int64 = periods * self._parts + self._given[:, rest]
        return counts

    def captions_until(self, pool: int, num_given: int) -> int:
        """The fewest captions of which a pool supplies `num_given`, which is at least 1."""
        periods, rest = divmod(num_given - 1, int(self._parts[pool]))
        return periods * self.period + int(np.searchsorted(self._given[pool], rest + 1))


def _whole_parts(weights: Sequence[Fraction]) -> list[int]:
    """The shares of the weights, as whole numbers of equal parts."""
    if not weights or min(weights) <= 0:
        raise ValueError(f"weights {', '.join(map(str, weights))}: give some, each above 0")
    shares = [weight / sum(weights) for weight in weights]
    if min(shares) * LARGEST_PERIOD < 1:
        raise ValueError(
            f"the smallest weight is {float(min(shares)):.2g} of all; the least is one part in "
            f"{LARGEST_PERIOD:,}"
        )
    denominator = math.lcm(*(share.denominator for share in shares))
    if denominator <= LARGEST_PERIOD:
        return [int(share * denominator) for share in shares]
    # Largest remainders: the parts sum to the period, each within one part of its share.
    parts = [int(share * LARGEST_PERIOD) for share in shares]
    remainders = [share * LARGEST_PERIOD - part for share, part in zip(shares, parts, strict=True)]
    by_remainder = sorted(range(len(shares)), key=lambda pool: (-remainders[pool], pool))
    for pool in by_remainder[: LARGEST_PERIOD - sum(parts)]:
        parts[pool] += 1
    return parts


def _one_period(parts: Sequence[int]) -> Int64:
    """int64 [sum of parts]: the pool of each caption of a period."""
    period = sum(parts)
    numbers = np.zeros(period, dtype=np.int64)
    if len(parts) == 1:
        return numbers
    slack = 2 * len(parts) - 2
    num_given = [0] * len(parts)
    # The latest position of each pool's next caption, apart from a common factor.
    deadline = [Fraction(slack - 1, part) for part in parts]
    for position in range(period):
        # A pool may supply its next caption once it lags behind its share by 1 / slack.
        eligible = [
            pool
            for pool, part in enumerate(parts)
            if slack * (part * (position + 1) - period * num_given[pool]) >= period
        ]
        chosen = min(eligible, key=deadline.__getitem__)
        numbers[position] = chosen
        num_given[chosen] += 1
        deadline[chosen] += Fraction(slack, parts[chosen])
    return numbers
