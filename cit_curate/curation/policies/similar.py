"""The captions that are kept for their similarity: CiT's rule, or a share of what is scanned."""

import numpy as np

from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.curation.selection import KEEP_RATIO, keep_best, keep_similar


def above_threshold(threshold: float, min_ratio: float) -> Policy:
    """CiT's rule: a threshold, and the best few of a batch where too few captions pass it."""

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        kept, reason = keep_similar(decision.open_rank, threshold=threshold, min_ratio=min_ratio)
        return decision.decide(kept, reason)

    return policy


def best_share(ratio: float) -> Policy:
    """The best share of what is scanned, whatever the scale of the similarities.

    A batch keeps as many as bring the scan to `int(ratio * scanned)`, so that small batches lose
    nothing to rounding.

    Args:
        ratio: The share to keep, above 0.
    """

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        before = candidates.totals.scanned
        count = int(ratio * (before + len(candidates))) - int(ratio * before)
        return decision.decide(keep_best(decision.open_rank, count), KEEP_RATIO)

    return policy


def everything(reason: str) -> Policy:
    """Every caption that is not left out."""

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        return decision.decide(np.ones(len(candidates), dtype=np.bool_), reason)

    return policy
