"""Each distinct caption is embedded once per encoder version.

Captions repeat: of clip-art captions one in three is distinct, and the scan of a large pool meets
`IMG_0001` again and again. What a caption scored holds as long as encoder and metadata do.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.records import Float32, Int64
from cit_curate.text_encoder.texts import Texts

# Captions that are remembered, the first ones met: what repeats is met early. About 15 MB, and
# 10 ms of look-up a window.
MOST_KNOWN = 262_144


@dataclass(frozen=True)
class Asked:
    """Captions to be scored.

    Attributes:
        indices: int64 [captions], place of each in the distinct ones.
        known: int64 [distinct], place among the remembered ones; -1 where it is new.
        new: The distinct captions that must be embedded, in the order they were met.
    """

    indices: Int64
    known: Int64
    new: Texts


class KnownScores:
    """The scores of the captions met so far, under one encoder and one index."""

    def __init__(self, limit: int = MOST_KNOWN) -> None:
        self._limit = limit
        self._texts = pa.array([], pa.string())
        self._similarity = np.zeros(0, dtype=np.float32)
        self._nearest = np.zeros(0, dtype=np.int64)

    def ask(self, texts: Texts) -> Asked:
        """Which of the captions are new."""
        distinct, indices = texts.distinct()
        found = pc.index_in(distinct.array, value_set=self._texts)
        known = found.fill_null(-1).to_numpy().astype(np.int64)
        return Asked(indices, known, new=distinct.take(np.flatnonzero(known < 0)))

    def answer(self, asked: Asked, similarity: Float32, nearest: Int64) -> tuple[Float32, Int64]:
        """The scores of all captions that were asked for, given those of the new ones.

        Args:
            asked: What `ask` gave.
            similarity: float32 [new].
            nearest: int64 [new].

        Returns:
            float32 and int64 [captions].
        """
        is_new = asked.known < 0
        scores = np.empty(len(is_new), dtype=np.float32)
        entries = np.empty(len(is_new), dtype=np.int64)
        scores[is_new], entries[is_new] = similarity, nearest
        old = asked.known[~is_new]
        scores[~is_new], entries[~is_new] = self._similarity[old], self._nearest[old]
        room = self._limit - len(self._texts)
        if room > 0 and len(asked.new):
            self._texts = pa.concat_arrays([self._texts, asked.new.array.slice(0, room)])
            self._similarity = np.append(self._similarity, similarity[:room])
            self._nearest = np.append(self._nearest, nearest[:room])
        return scores[asked.indices], entries[asked.indices]
