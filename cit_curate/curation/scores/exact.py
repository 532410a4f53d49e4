"""Scores by embedding every caption and comparing it with all metadata, in this process."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cit_curate.config import CurateConfig
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.broken_vectors import embed_captions, mark_broken
from cit_curate.curation.scores.scanned_texts import scanned_texts
from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.records import Bool, CaptionBatch, Embedder, Float32, Int64, PoolCursor
from cit_curate.text_encoder.texts import Texts
from indexes.proposals import as_array
from indexes.protocol import MetadataIndex

# Lanes that look for replacements at the same time share one encoder and one index.
ENCODING = threading.Lock()


class Scores(NamedTuple):
    """The scores of some captions.

    Attributes:
        similarity: float32 [captions], best cosine over the metadata; NaN: not scored.
        nearest: int64 [captions], the nearest entry; of no meaning where not scored.
        weight: float32 [captions], one over the probability that the caption is scored; 0 where it
            was not. None: all are.
        search_seconds: The search's share of the time.
    """

    similarity: Float32
    nearest: Int64
    weight: Float32 | None = None
    search_seconds: float = 0.0

    def of(self, rows: Bool | slice) -> "Scores":
        """The scores of some of the captions: bool [captions], or a slice."""
        weight = None if self.weight is None else self.weight[rows]
        return Scores(self.similarity[rows], self.nearest[rows], weight)


WindowScores = Callable[[Sequence[CaptionBatch], ScanTotals], Scores]
"""The scores of the next window of a scan, given what the scan has seen before it."""

LaneScores = Callable[[int, PoolCursor], WindowScores]
"""What scores a lane whose scan begins at a cursor in this outer step."""


class ExactScores:
    """Every caption is embedded and compared with all metadata; a `WindowScores`."""

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
            found = self._index.search(vectors)
            similarity = mark_broken(found.similarity[:, 0], broken)
            scored = self._cache.store(lookup, similarity, found.ids[:, 0])
            return Scores(*scored, search_seconds=time.perf_counter() - embedded)

    def vectors(self, texts: Texts) -> tuple[Float32, Float32]:
        """Vectors and similarities of distinct texts; their scores are cached.

        Returns:
            float32 [texts, dim] and float32 [texts], NaN where there is no usable vector.
        """
        with ENCODING:
            lookup = self._cache.lookup(texts)
            vectors, broken = embed_captions(self._encoder, texts)
            found = self._index.search(vectors)
            similarity = mark_broken(found.similarity[:, 0], broken)
            is_new = lookup.known < 0
            self._cache.store(lookup, similarity[is_new], found.ids[is_new, 0])
        return as_array(vectors), similarity
