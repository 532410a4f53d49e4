"""How many captions were skipped that would have been kept, from a random sample of the skipped.

A skipped caption is scored all the same with a known probability p. One that is found to pass
stands for 1/p of its kind (Horvitz and Thompson 1952): itself, which is kept, and 1/p - 1 that were
missed. The interval is that of a weighted sum of Poisson counts (Fay and Feuer 1997), with
chi-squared quantiles after Wilson and Hilferty (1931).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from cit_curate.config import CurateConfig
from cit_curate.curation.selection import MIN_RATIO
from cit_curate.records import Float32

LEVEL = 0.95
REVIEW_CAPTIONS = 16_384


@dataclass(frozen=True)
class Recall:
    """The share of what exact curation keeps that was kept, and its interval at `LEVEL`."""

    estimate: float
    low: float
    high: float


@dataclass
class Missed:
    """One rule's side of an audit.

    Attributes:
        kept: Captions that the rule kept.
        found: Those of them that were scored by chance alone.
        standing_for: The sum of their 1/p: an estimate of all those that were ruled out wrongly.
        variance: Of that estimate.
    """

    kept: int = 0
    found: int = 0
    standing_for: float = 0.0
    variance: float = 0.0

    @property
    def missed(self) -> float:
        """Estimate of those that should have been kept and were not."""
        return self.standing_for - self.found


@dataclass
class Audit:
    """The audit of one scan.

    Attributes:
        skipped: Captions that were not scored.
        audited: Captions that were scored by chance alone.
        heaviest: For how many captions one that is found may stand: the largest 1/p.
        next_review: Captions scanned at the next review.
        caution: What the last review asked for, from 0 to 2.
        missed: What was found, by the rule that kept it.
    """

    skipped: int = 0
    audited: int = 0
    heaviest: float = 0.0
    next_review: int = 0
    caution: int = 0
    missed: dict[str, Missed] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Audit":
        """What `dataclasses.asdict` gave."""
        missed = {reason: Missed(**each) for reason, each in value["missed"].items()}
        return cls(**{**value, "missed": missed})

    def count(self, weight: Float32, kept_weight: Float32, reason: str) -> None:
        """Add a batch.

        Args:
            weight: float32 [batch], 1/p of each caption that was scored; 0: skipped.
            kept_weight: float32 [kept], the same of those that were kept.
            reason: The rule that decided.
        """
        self.skipped += int((weight == 0).sum())
        self.audited += int((weight > 1).sum())
        found = kept_weight[kept_weight > 1].astype(np.float64)
        rule = self.missed.setdefault(reason, Missed())
        rule.kept += len(kept_weight)
        rule.found += len(found)
        rule.standing_for += float(found.sum())
        rule.variance += float((found**2).sum())

    def recall(self, reason: str) -> Recall:
        """The recall of one rule.

        A batch that `min_ratio` decides is always full: what it missed, something else has
        taken the place of.
        """
        rule = self.missed[reason]
        heaviest = self.heaviest if self.skipped else 0.0
        low, high = _interval(rule.standing_for, rule.variance, heaviest)
        of = _share_of_full if reason == MIN_RATIO else _share
        missed = (rule.standing_for, high, low)
        return Recall(*(of(rule.kept, max(0.0, each - rule.found)) for each in missed))

    def review(self, scanned: int, target: float) -> int:
        """How careful to be from here on; another answer only every `REVIEW_CAPTIONS` captions.

        Returns:
            0 while every rule's recall is shown to be at the target, 1 when that cannot be shown, 2
            when the estimate itself is below it.
        """
        if scanned >= self.next_review:
            self.next_review = (scanned // REVIEW_CAPTIONS + 1) * REVIEW_CAPTIONS
            recalls = [self.recall(reason) for reason, rule in self.missed.items() if rule.kept]
            self.caution = max((_caution(each, target) for each in recalls), default=0)
        return self.caution


def new_audit(config: CurateConfig) -> Audit | None:
    """The audit of a scan that a cascade scores, before its first caption; None for other scans."""
    return Audit(heaviest=1 / config.audit_ratio) if config.curation == "cascade" else None


def _caution(recall: Recall, target: float) -> int:
    return int(recall.low < target) + int(recall.estimate < target)


def _share(kept: int, missed: float) -> float:
    return kept / (kept + missed) if kept + missed else 1.0


def _share_of_full(kept: int, missed: float) -> float:
    return max(0.0, 1 - missed / kept) if kept else 1.0


def _interval(total: float, variance: float, heaviest: float) -> tuple[float, float]:
    """Bounds of a weighted sum of Poisson counts, none of which weighs more than `heaviest`."""
    tail = (1 - LEVEL) / 2
    low = variance / (2 * total) * _chi_squared(tail, 2 * total**2 / variance) if total else 0.0
    if not heaviest:
        return low, total
    above, spread = total + heaviest, variance + heaviest**2
    return low, spread / (2 * above) * _chi_squared(1 - tail, 2 * above**2 / spread)


def _chi_squared(probability: float, freedom: float) -> float:
    part = 2 / (9 * freedom)
    root = 1 - part + NormalDist().inv_cdf(probability) * math.sqrt(part)
    return freedom * max(0.0, root) ** 3
