"""Scores that also say how similar each caption was under the first encoder of the run."""

from collections.abc import Sequence

import numpy as np

from cit_curate.config import CurateConfig
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import ExactScores, Scores, WindowScores
from cit_curate.curation.scores.scanned_texts import scanned_texts
from cit_curate.records import CaptionBatch


def with_first(
    config: CurateConfig, lane: int, scores: WindowScores, first: ExactScores
) -> WindowScores:
    """The scores under today's encoder, with the similarities under the first one.

    Args:
        config: The rules.
        lane: The number of the lane.
        scores: The scores under today's encoder.
        first: The scores under the first one; they are cached from outer step to outer step.
    """

    def both(window: Sequence[CaptionBatch], totals: ScanTotals) -> Scores:
        today = scores(window, totals)
        similarity = first.of(scanned_texts(config, lane, window)).similarity
        return today._replace(first=np.asarray(similarity, dtype=np.float32))

    return both
