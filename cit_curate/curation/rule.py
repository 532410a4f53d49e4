"""The seam for policies: which captions of a scored batch are kept, and for what reason.

A rule is a chain of policies. A new one is a module in `policies/` and a line in `make_rule`.
"""

from collections.abc import Callable, Iterator

from cit_curate.config import CurateConfig
from cit_curate.curation.policies.anchor import anchored
from cit_curate.curation.policies.balance import balanced
from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.curation.policies.lists import excluded, included
from cit_curate.curation.policies.own import load_policy
from cit_curate.curation.policies.random_share import random_share
from cit_curate.curation.policies.similar import above_threshold, best_share, everything
from cit_curate.curation.selection import EVERYTHING

Rule = Callable[[Candidates], Decision]
"""A pure function of a scored batch; see `Policy`."""


def make_rule(
    config: CurateConfig, *, lane: int, num_entries: int, num_pairs: int, scored: bool = True
) -> Rule:
    """The policies of a config, in order: what ranks, what leaves out, what keeps, what adds.

    Args:
        config: The rules.
        lane: The number of the lane.
        num_entries: The number of metadata entries.
        num_pairs: The pairs that the outer step is to have, for `balance`.
        scored: Whether captions are scored; else all are kept that are not excluded.

    Raises:
        BadInputError: A list of pairs cannot be read.
        ConfigError: A policy of the user's own cannot be imported, or a list does not exist.
    """
    chain: list[Policy] = []
    if config.exclude:
        chain.append(excluded(config.exclude))
    if scored:
        chain += _of_scores(config, lane, num_entries, num_pairs)
    else:
        chain.append(everything(EVERYTHING))

    def rule(candidates: Candidates) -> Decision:
        decision = Decision.of(candidates.scores)
        for policy in chain:
            decision = policy(candidates, decision)
        return decision

    return rule


def _of_scores(
    config: CurateConfig, lane: int, num_entries: int, num_pairs: int
) -> Iterator[Policy]:
    """The policies that need similarities."""
    if config.anchor:
        yield anchored(config.anchor)
    if config.policy:
        yield load_policy(config.policy)
    if config.balance:
        yield balanced(config.balance, num_pairs=num_pairs, num_entries=num_entries)
    if config.keep_ratio:
        yield best_share(config.keep_ratio)
    else:
        yield above_threshold(config.threshold, config.min_ratio)
    if config.include:
        yield included(config.include)
    if config.mix_random:
        yield random_share(config.mix_random, seed=config.seed, lane=lane)
