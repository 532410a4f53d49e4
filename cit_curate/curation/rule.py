"""The seam for policies: which captions of a scored batch are kept, and for what reason.

A new policy is a function here that returns a `Rule`; `Curator.scan` picks the rule of a scan.
"""

from collections.abc import Callable

from cit_curate.config import CurateConfig
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import Scores
from cit_curate.curation.selection import keep_similar
from cit_curate.records import Bool

Rule = Callable[[Scores, ScanTotals], tuple[Bool, str]]
"""A pure function of a batch's scores and of the totals of the scan before that batch.

It returns bool [batch], the captions to keep, and the reason, which the ledger records. A scan
applies it batch by batch in arrival order. Its decisions therefore do not depend on how many
captions are embedded at once, on the number of processes, or on a kill: totals are saved with the
scan.
"""


def similarity_rule(config: CurateConfig) -> Rule:
    """The rule of CiT: a threshold, and the best few of a batch where too few captions pass it."""

    def rule(scores: Scores, totals: ScanTotals) -> tuple[Bool, str]:
        return keep_similar(
            scores.similarity, threshold=config.threshold, min_ratio=config.min_ratio
        )

    return rule
