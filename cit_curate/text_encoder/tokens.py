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
        ids: int64 [tokens], the ids of all captions, one caption after the other.
        counts: int64 [captions], the number of tokens of each caption.
    """

    ids: Int64
    counts: Int64

    @classmethod
    def of(cls, captions: Sequence[Sequence[int]]) -> "Tokens":
        """From the ids of each caption."""
        counts = np.fromiter(map(len, captions), dtype=np.int64, count=len(captions))
        ids = np.fromiter(chain.from_iterable(captions), np.int64, int(counts.sum()))
        return cls(ids, counts)

    @classmethod
    def of_lists(cls, captions: pa.Array) -> "Tokens":
        """From an Arrow array with the ids of each caption, without nulls."""
        counts = captions.value_lengths().to_numpy().astype(np.int64)
        return cls(captions.flatten().to_numpy().astype(np.int64), counts)

    def followed_by(self, others: "Tokens") -> "Tokens":
        """These captions followed by others."""
        ids, counts = np.append(self.ids, others.ids), np.append(self.counts, others.counts)
        return Tokens(ids, counts)

    def __len__(self) -> int:
        """The number of captions."""
        return len(self.counts)

    @property
    def starts(self) -> Int64:
        """int64 [captions], the index of each caption's first token in `ids`."""
        return np.cumsum(self.counts) - self.counts

    def take(self, rows: Int64) -> "Tokens":
        """The captions at `rows`, int64 [rows], in that order."""
        counts = self.counts[rows]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return Tokens(self.ids[np.repeat(self.starts[rows], counts) + within], counts)
