"""An estimate of the captions that a cascade skipped and exact curation would have kept.

Each caption that would be skipped is scored anyway with a known probability p. One that passes
stands for 1/p captions (Horvitz and Thompson 1952): itself, which is kept, and 1/p - 1 that were
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
    """The kept share of the captions that exact curation keeps, and its interval at `LEVEL`."""

    estimate: float
    low: float
    high: float


@dataclass
class Missed:
    """The audit of the captions that were kept for one reason.

    Attributes:
        kept: The captions that were kept.
        found: Those of them that were scored by chance alone.
        standing_for: The sum of their 1/p, an estimate of all captions that were wrongly ruled out.
        variance: The variance of that estimate.
    """

    kept: int = 0
    found: int = 0
    standing_for: float = 0.0
    variance: float = 0.0

    @property
    def missed(self) -> float:
        """The estimated captions that should have been kept and were not."""
        return self.standing_for - self.found


@dataclass
class Audit:
    """The audit of one scan.

    Attributes:
        skipped: The captions that were not scored.
        audited: The captions that were scored by chance alone.
        heaviest: The largest 1/p: the most captions that a single one may stand for.
        next_review: The number of scanned captions at which the next review is due.
        caution: The result of the last review, from 0 to 2.
        missed: The audit of each reason.
    """

    skipped: int = 0
    audited: int = 0
    heaviest: float = 0.0
    next_review: int = 0
    caution: int = 0
    missed: dict[str, Missed] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Audit":
        """The audit that `dataclasses.asdict` turned into `value`."""
        missed = {reason: Missed(**each) for reason, each in value["missed"].items()}
        return cls(**{**value, "missed": missed})

    def count(self, weight: Float32, kept_weight: Float32, reason: str) -> None:
        """Add a batch.

        Args:
            weight: float32 [batch], 1/p of each scored caption; 0 = skipped.
            kept_weight: float32 [kept], the weights of the kept captions.
            reason: The reason that the rule gave.
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
        """The recall of the captions that were kept for one reason.

        A batch that `min_ratio` decides is always full: another caption was kept instead of each
        missed one.
        """
        rule = self.missed[reason]
        heaviest = self.heaviest if self.skipped else 0.0
        low, high = _interval(rule.standing_for, rule.variance, heaviest)
        share = _share_of_full if reason == MIN_RATIO else _share
        totals = (rule.standing_for, high, low)
        return Recall(*(share(rule.kept, max(0.0, total - rule.found)) for total in totals))

    def review(self, scanned: int, target: float) -> int:
        """The caution to apply from here on; it changes only every `REVIEW_CAPTIONS` captions.

        Returns:
            0 while every recall is shown to be at the target, 1 when that cannot be shown, 2 when
            the estimate itself is below it.
        """
        if scanned >= self.next_review:
            self.next_review = (scanned // REVIEW_CAPTIONS + 1) * REVIEW_CAPTIONS
            recalls = [self.recall(reason) for reason, rule in self.missed.items() if rule.kept]
            self.caution = max((_caution(recall, target) for recall in recalls), default=0)
        return self.caution


def new_audit(config: CurateConfig) -> Audit | None:
    """The empty audit of a scan that a cascade scores; None for other scans."""
    return Audit(heaviest=1 / config.audit_ratio) if config.curation == "cascade" else None


def _caution(recall: Recall, target: float) -> int:
    return int(recall.low < target) + int(recall.estimate < target)


def _share(kept: int, missed: float) -> float:
    return kept / (kept + missed) if kept + missed else 1.0


def _share_of_full(kept: int, missed: float) -> float:
    return max(0.0, 1 - missed / kept) if kept else 1.0


def _interval(total: float, variance: float, heaviest: float) -> tuple[float, float]:
    """The bounds of a weighted sum of Poisson counts, none heavier than `heaviest`."""
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
