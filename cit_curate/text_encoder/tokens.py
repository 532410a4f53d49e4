"""The token ids of many captions in one array."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

from cit_curate.records import Int64


@dataclass(frozen=True)
class Tokens:
    """Captions as token ids.

    Attributes:
        ids: int64 [tokens], of all captions, one caption after the other.
        counts: int64 [captions], tokens of each.
    """

    ids: Int64
    counts: Int64

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]]) -> "Tokens":
        """The ids of each caption, put together."""
        counts = np.fromiter(map(len, captions), dtype=np.int64, count=len(captions))
        ids = np.fromiter(chain.from_iterable(captions), np.int64, int(counts.sum()))
        return cls(ids, counts)

    @classmethod
    def of_lists(cls, captions: pa.Array) -> "Tokens":
        """The ids of each caption, from an Arrow array of lists without nulls."""
        counts = captions.value_lengths().to_numpy().astype(np.int64)
        return cls(captions.flatten().to_numpy().astype(np.int64), counts)

    def followed_by(self, others: "Tokens") -> "Tokens":
        """These captions, then others."""
        ids, counts = np.append(self.ids, others.ids), np.append(self.counts, others.counts)
        return Tokens(ids, counts)

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.counts)

    @property
    def starts(self) -> Int64:
        """int64 [captions], place of each caption's first token."""
        return np.cumsum(self.counts) - self.counts

    def take(self, rows: Int64) -> "Tokens":
        """Some of the captions, in the order given: int64 [rows]."""
        counts = self.counts[rows]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return Tokens(self.ids[np.repeat(self.starts[rows], counts) + within], counts)
