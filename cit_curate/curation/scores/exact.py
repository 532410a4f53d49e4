"""Exact scores: every caption is embedded and compared with all metadata, in this process."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cit_curate.config import CurateConfig
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.broken_vectors import embed_captions, mark_broken
from cit_curate.curation.scores.scanned_texts import scanned_texts
from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.records import Bool, CaptionBatch, Float32, Int64, PoolCursor
from cit_curate.text_encoder.embedder import Embedder
from cit_curate.text_encoder.texts import Texts
from indexes.proposals import as_array
from indexes.protocol import MetadataIndex

# Lanes that replace pairs at the same time share one encoder and one index.
ENCODING = threading.Lock()


class Scores(NamedTuple):
    """The scores of some captions.

    Attributes:
        similarity: float32 [captions], the best cosine over the metadata; NaN = not scored.
        nearest: int64 [captions], the nearest entry; meaningless where not scored.
        weight: float32 [captions], 1 over the probability that the caption is scored, 0 where it
            was not; None = all are scored.
        search_seconds: The part of the time that the search took.
        first: float32 [captions], the best cosine under the first encoder of the run; None = it was
            not asked for.
    """

    similarity: Float32
    nearest: Int64
    weight: Float32 | None = None
    search_seconds: float = 0.0
    first: Float32 | None = None

    def of(self, rows: Bool | slice) -> "Scores":
        """The scores of some captions; `rows` is bool [captions] or a slice."""
        weight = None if self.weight is None else self.weight[rows]
        first = None if self.first is None else self.first[rows]
        return Scores(self.similarity[rows], self.nearest[rows], weight, first=first)


def unscored(count: int) -> Scores:
    """The scores of captions that nothing is compared with."""
    return Scores(np.full(count, np.nan, dtype=np.float32), np.zeros(count, dtype=np.int64))


WindowScores = Callable[[Sequence[CaptionBatch], ScanTotals], Scores]
"""From the next window of a scan, and the totals before it, to the scores of the window."""

LaneScores = Callable[[int, PoolCursor], WindowScores]
"""From a lane, and the cursor at which its scan begins in this outer step, to its scores."""


class ExactScores:
    """The scores of all captions; a `WindowScores`."""

    def __init__(
        self,
        config: CurateConfig,
        lane: int,
        encoder: Embedder,
        index: MetadataIndex,
        cache: ScoreCache,
    ) -> None:
        self._config, self._lane = config, lane
        self._encoder, self._index, self._cache = encoder, index, cache

    def __call__(self, window: Sequence[CaptionBatch], totals: ScanTotals) -> Scores:
        """The scores of a window."""
        return self.of(scanned_texts(self._config, self._lane, window))

    def of(self, texts: Texts) -> Scores:
        """The scores of texts."""
        with ENCODING:
            lookup = self._cache.lookup(texts)
            vectors, broken = embed_captions(self._encoder, lookup.new)
            embedded = time.perf_counter()
            result = self._index.search(vectors)
            similarity = mark_broken(result.similarity[:, 0], broken)
            scored = self._cache.store(lookup, similarity, result.ids[:, 0])
            return Scores(*scored, search_seconds=time.perf_counter() - embedded)

    def vectors(self, texts: Texts) -> tuple[Float32, Float32]:
        """The vectors and similarities of distinct texts; their scores are cached.

        Returns:
            float32 [texts, dim] and float32 [texts], NaN where there is no usable vector.
        """
        with ENCODING:
            lookup = self._cache.lookup(texts)
            vectors, broken = embed_captions(self._encoder, texts)
            result = self._index.search(vectors)
            similarity = mark_broken(result.similarity[:, 0], broken)
            is_new = lookup.known < 0
            self._cache.store(lookup, similarity[is_new], result.ids[is_new, 0])
        return as_array(vectors), similarity
