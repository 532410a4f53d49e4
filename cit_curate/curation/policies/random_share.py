"""A share of pairs that no similarity has chosen, for what the model is to know besides."""

import numpy as np

from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.curation.scores.keyed_random import keyed_uniform

RANDOM = "random"
RANDOM_KEY = 13


def random_share(share: float, *, seed: int, lane: int) -> Policy:
    """Keep further captions by chance, so that they are a share of all that is kept.

    Args:
        share: The share of random captions among the kept ones, below 1.
        seed: The seed of the run.
        lane: The number of the lane.
    """

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        open_rows = ~decision.left_out & ~decision.kept
        # As many as bring the scan to its share; of a batch, those with the smallest numbers.
        chosen = candidates.totals.kept_of_reason[RANDOM]
        others = sum(candidates.totals.kept_of_reason.values()) - chosen + int(decision.kept.sum())
        count = int(others * share / (1 - share)) - chosen
        number = keyed_uniform((seed, RANDOM_KEY, lane), candidates.batch.scan_position)
        number = np.where(open_rows, number, np.inf)
        rows = np.zeros(len(candidates), dtype=np.bool_)
        rows[np.argsort(number, kind="stable")[: max(count, 0)]] = True
        return decision.keep(rows & open_rows, RANDOM)

    return policy
