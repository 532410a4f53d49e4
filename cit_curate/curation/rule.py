"""The seam for policies: which captions of a scored batch are kept, and for what reason.

A rule is a chain of policies. A new one is a module in `policies/` and a line in `make_rule`.
"""

from collections.abc import Callable

from cit_curate.config import CurateConfig
from cit_curate.curation.policies.anchor import anchored
from cit_curate.curation.policies.balance import balanced
from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.curation.policies.own import load_policy
from cit_curate.curation.policies.random_share import random_share
from cit_curate.curation.policies.similar import above_threshold, best_share

Rule = Callable[[Candidates], Decision]
"""A pure function of a scored batch; see `Policy`."""


def make_rule(config: CurateConfig, *, lane: int, num_entries: int, num_pairs: int) -> Rule:
    """The policies of a config, in order: what ranks, what leaves out, what keeps, what adds.

    Args:
        config: The rules.
        lane: The number of the lane.
        num_entries: The number of metadata entries.
        num_pairs: The pairs that the outer step is to have, for `balance`.

    Raises:
        ConfigError: A policy of the user's own cannot be imported.
    """
    chain: list[Policy] = []
    if config.anchor:
        chain.append(anchored(config.anchor))
    if config.policy:
        chain.append(load_policy(config.policy))
    if config.balance:
        chain.append(balanced(config.balance, num_pairs=num_pairs, num_entries=num_entries))
    if config.keep_ratio:
        chain.append(best_share(config.keep_ratio))
    else:
        chain.append(above_threshold(config.threshold, config.min_ratio))
    if config.mix_random:
        chain.append(random_share(config.mix_random, seed=config.seed, lane=lane))

    def rule(candidates: Candidates) -> Decision:
        decision = Decision.of(candidates.scores)
        for policy in chain:
            decision = policy(candidates, decision)
        return decision

    return rule
