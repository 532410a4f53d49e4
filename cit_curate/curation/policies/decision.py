"""What a policy gets and returns: the captions of a scanned batch, and what became of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import Scores
from cit_curate.curation.selection import BALANCE
from cit_curate.records import Bool, CaptionBatch, Float32

Reasons = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Candidates:
    """The captions of a scored batch.

    Attributes:
        batch: The captions, as `CaptionBatch` describes them.
        scores: Their similarities and nearest entries.
        totals: The totals of the scan before this batch; not to be changed.
    """

    batch: CaptionBatch
    scores: Scores
    totals: ScanTotals

    def __len__(self) -> int:
        return len(self.scores.similarity)


@dataclass(frozen=True)
class Decision:
    """What became of each caption of a batch so far.

    Attributes:
        rank: float32 [batch], which the best are chosen by: the similarity, unless a policy has
            changed it. NaN = not scored.
        left_out: bool [batch], the captions that no later policy keeps.
        kept: bool [batch], the captions that are kept.
        reason: object [batch], the policy that kept each caption, or the one that did not.
    """

    rank: Float32
    left_out: Bool
    kept: Bool
    reason: Reasons

    @classmethod
    def of(cls, scores: Scores) -> "Decision":
        """Nothing is decided yet."""
        none = np.zeros(len(scores.similarity), dtype=np.bool_)
        return cls(scores.similarity, none, none, np.full(len(none), "", dtype=np.object_))

    @property
    def open_rank(self) -> Float32:
        """float32 [batch], the rank; -inf of captions that are left out."""
        return np.where(self.left_out, np.float32(-np.inf), self.rank)

    @property
    def may_wait(self) -> Bool:
        """Captions to keep when the passes end before the budget is full: bool [batch]."""
        held_up: Bool = ~self.left_out | (self.reason == BALANCE)
        return held_up & ~self.kept

    def ranked(self, rank: Float32) -> "Decision":
        """Choose the best by another rank: float32 [batch]."""
        return replace(self, rank=rank)

    def leave_out(self, rows: Bool, reason: str) -> "Decision":
        """Leave captions out; those that are left out already keep their reason."""
        new = rows & ~self.left_out
        return replace(
            self,
            left_out=self.left_out | rows,
            kept=self.kept & ~rows,
            reason=_set(self.reason, new, reason),
        )

    def keep(self, rows: Bool, reason: str) -> "Decision":
        """Keep captions in addition to those that are kept already."""
        new = rows & ~self.left_out & ~self.kept
        return replace(self, kept=self.kept | new, reason=_set(self.reason, new, reason))

    def decide(self, kept: Bool, reason: str) -> "Decision":
        """Keep captions and no others; the reason holds for both."""
        return replace(
            self,
            kept=kept & ~self.left_out,
            reason=_set(self.reason, ~self.left_out, reason),
        )


Policy = Callable[[Candidates, Decision], Decision]
"""A pure function of a batch and of what the policies before it decided.

A scan applies it batch by batch, in the order of the scan. What it decides therefore does not
depend on how many captions are embedded at once, on the number of processes, or on a kill: totals
are saved with the scan.
"""


def _set(reasons: Reasons, rows: Bool, reason: str) -> Any:
    changed = reasons.copy()
    changed[rows] = reason
    return changed
