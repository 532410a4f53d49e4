"""Exact selections from two passes: bfloat16 over all captions, float32 where it matters.

The first pass says roughly how similar each caption is. Those above the cut of their batch, or less
than a margin below it, are embedded again in float32. So the kept pairs, their similarities and
their reasons are those of exact scores; the similarities of other captions are the first pass's.
"""

import logging
from collections.abc import Sequence

import numpy as np

from cit_curate.config import CurateConfig
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import ENCODING, ExactScores, Scores, WindowScores
from cit_curate.curation.scores.scanned_texts import scanned_texts
from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.curation.selection import lowest_kept
from cit_curate.processor import has_bfloat16
from cit_curate.records import CaptionBatch
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.packed import PackedTower
from indexes.protocol import MetadataIndex

logger = logging.getLogger(__name__)

# How far below the cut a caption is embedded again. Twice the largest error must fit: one of the
# caption itself, and one of that which sets the cut. Measured over 1,500
# definitions with MiniLM: 0.0015.
MARGIN = 0.01


def two_pass_scores(
    config: CurateConfig,
    lane: int,
    *,
    encoder: TextEncoder,
    index: MetadataIndex,
    exact: ExactScores,
) -> WindowScores:
    """The scores of both passes; exact ones, where the tower has no first pass.

    Args:
        config: The rules.
        lane: The number of the lane.
        encoder: The text encoder.
        index: The metadata under that encoder.
        exact: The scores of the second pass.
    """
    first = encoder.bfloat16
    if first is None:
        logger.warning(
            "--curation two-pass: on %s, and for this text tower, one pass is made, as with "
            "--curation exact",
            encoder.device.type,
        )
        return exact
    if not has_bfloat16():
        logger.warning(
            "--curation two-pass: this processor emulates bfloat16 (it has neither AMX nor "
            "AVX512_BF16); --curation exact is faster here and keeps the same pairs"
        )
    return TwoPassScores(config, lane, encoder=encoder, first=first, index=index, exact=exact)


class TwoPassScores:
    """The scores of all captions, exact for those that may be kept; a `WindowScores`."""

    def __init__(
        self,
        config: CurateConfig,
        lane: int,
        *,
        encoder: TextEncoder,
        first: PackedTower,
        index: MetadataIndex,
        exact: ExactScores,
    ) -> None:
        """Set up both passes; nothing is embedded yet.

        Args:
            config: The rules.
            lane: The number of the lane.
            encoder: The text encoder, for its tokens.
            first: The tower of the first pass.
            index: The metadata under the encoder.
            exact: The scores of the second pass.
        """
        self._config, self._lane = config, lane
        self._encoder, self._first, self._index = encoder, first, index
        self._exact = exact
        self._cache = ScoreCache()

    def __call__(self, window: Sequence[CaptionBatch], totals: ScanTotals) -> Scores:
        """The scores of a window."""
        texts = scanned_texts(self._config, self._lane, window)
        with ENCODING:
            lookup = self._cache.lookup(texts)
            vectors = self._first.embed(self._encoder.tokenize(lookup.new))
            is_broken = ~vectors.isfinite().all(dim=1).numpy()
            found = self._index.search(vectors.nan_to_num(0.0, 0.0, 0.0))
            # What has no usable vector goes through the second pass, which says so.
            guess = np.where(is_broken, np.float32(np.inf), found.similarity[:, 0])
            similarity, nearest = self._cache.store(lookup, guess, found.ids[:, 0])
        cut = lowest_kept(
            np.where(np.isfinite(similarity), similarity, -np.inf),
            [len(batch) for batch in window],
            threshold=self._config.threshold,
            min_ratio=self._config.min_ratio,
        )
        near = similarity > cut - MARGIN
        exact = self._exact.of(texts.take(np.flatnonzero(near)))
        with np.errstate(invalid="ignore"):
            error = np.nanmax(np.abs(exact.similarity - similarity[near]), initial=0.0)
        if np.isfinite(error) and error > MARGIN / 2:
            logger.warning(
                "bfloat16 is off by %.3f here, more than half the margin of %.2f: all %d captions "
                "are embedded in float32; --curation exact would be faster",
                error,
                MARGIN,
                len(texts),
            )
            return self._exact.of(texts)
        similarity, nearest = similarity.copy(), nearest.copy()
        similarity[near], nearest[near] = exact.similarity, exact.nearest
        return Scores(similarity, nearest, search_seconds=exact.search_seconds)
