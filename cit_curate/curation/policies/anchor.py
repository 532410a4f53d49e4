"""Similarities that stay tied to those of the first text encoder.

As training moves the text encoder, similarities to the metadata rise for everything. The rank of a
caption is the mean of two similarities, under the first encoder of the run and under today's, each
standardised over what the scan has met, since the two have different scales.
"""

import numpy as np

from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.records import Float32


def anchored(weight: float) -> Policy:
    """Rank captions by both encoders.

    Args:
        weight: The weight of the first encoder's similarity, from 0 to 1.
    """

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        first = candidates.scores.first
        assert first is not None, "the scores lack the first encoder's similarities"
        moments = candidates.totals.moments.with_batch(decision.rank, first)
        (mean, deviation), (first_mean, first_deviation) = moments.scales
        # float64 until the end, or equal captions of two batches could differ in their last bits.
        rank = (1 - weight) * (decision.rank.astype(np.float64) - mean) / deviation
        rank += weight * (first.astype(np.float64) - first_mean) / first_deviation
        combined: Float32 = rank.astype(np.float32)
        return decision.ranked(combined)

    return policy
