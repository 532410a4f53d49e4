"""A cache of the scores of captions under one encoder and one index.

Captions repeat: of clip-art captions one in three is distinct, and the scan of a large pool meets
`IMG_0001` again and again. A score is valid as long as the encoder and the metadata stay.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.records import Float32, Int64
from cit_curate.text_encoder.texts import Texts

# The most captions in the cache, the first ones met: what repeats is met early. They take about
# 15 MB, and 10 ms of lookup per window.
MAX_CAPTIONS = 262_144


@dataclass(frozen=True)
class Lookup:
    """Captions to score, and which of them are in the cache.

    Attributes:
        indices: int64 [captions], the row of each in the distinct captions.
        known: int64 [distinct], the row of each in the cache; -1 where it is new.
        new: The distinct captions that are not in the cache, in the order they were met.
    """

    indices: Int64
    known: Int64
    new: Texts


class ScoreCache:
    """The scores of the captions met so far."""

    def __init__(self, limit: int = MAX_CAPTIONS) -> None:
        self._limit = limit
        self._texts = pa.array([], pa.string())
        self._similarity = np.zeros(0, dtype=np.float32)
        self._nearest = np.zeros(0, dtype=np.int64)

    def lookup(self, texts: Texts) -> Lookup:
        """Look captions up; nothing is stored."""
        distinct, indices = texts.distinct()
        rows = pc.index_in(distinct.array, value_set=self._texts)
        known = rows.fill_null(-1).to_numpy().astype(np.int64)
        return Lookup(indices, known, new=distinct.take(np.flatnonzero(known < 0)))

    def store(self, lookup: Lookup, similarity: Float32, nearest: Int64) -> tuple[Float32, Int64]:
        """Store the scores of the new captions, and return those of all that were looked up.

        Args:
            lookup: The result of `lookup`.
            similarity: float32 [new].
            nearest: int64 [new].

        Returns:
            float32 and int64 [captions].
        """
        is_new = lookup.known < 0
        scores = np.empty(len(is_new), dtype=np.float32)
        entries = np.empty(len(is_new), dtype=np.int64)
        scores[is_new], entries[is_new] = similarity, nearest
        old = lookup.known[~is_new]
        scores[~is_new], entries[~is_new] = self._similarity[old], self._nearest[old]
        room = self._limit - len(self._texts)
        if room > 0 and len(lookup.new):
            self._texts = pa.concat_arrays([self._texts, lookup.new.array.slice(0, room)])
            self._similarity = np.append(self._similarity, similarity[:room])
            self._nearest = np.append(self._nearest, nearest[:room])
        return scores[lookup.indices], entries[lookup.indices]
