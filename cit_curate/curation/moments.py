"""The mean and deviation of similarities that a scan has met so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cit_curate.records import Float32


@dataclass(frozen=True)
class Moments:
    """Sums over the captions of a scan that have both similarities.

    Cosines are at most 1, so float64 sums of a billion of them still have seven exact digits.

    Attributes:
        count: The number of captions.
        sums: For the similarity under the encoder of this outer step, and under the first one, the
            sum and the sum of squares.
    """

    count: int = 0
    sums: Sequence[float] = (0.0, 0.0, 0.0, 0.0)

    def with_batch(self, similarity: Float32, first: Float32) -> "Moments":
        """The moments with a further batch: float32 [batch] each, NaN where there is none."""
        found = np.isfinite(similarity) & np.isfinite(first)
        one, other = similarity[found].astype(np.float64), first[found].astype(np.float64)
        new = (one.sum(), (one**2).sum(), other.sum(), (other**2).sum())
        sums = tuple(before + float(more) for before, more in zip(self.sums, new, strict=True))
        return Moments(self.count + int(found.sum()), sums)

    @property
    def scales(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The mean and the standard deviation of both; a deviation of 0 counts as 1."""
        one, one_squares, other, other_squares = self.sums
        return self._scale(one, one_squares), self._scale(other, other_squares)

    def _scale(self, total: float, squares: float) -> tuple[float, float]:
        mean = total / max(self.count, 1)
        variance = squares / max(self.count, 1) - mean**2
        return mean, math.sqrt(variance) if variance > 1e-12 else 1.0
