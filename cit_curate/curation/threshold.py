"""Help with the threshold: the similarities of a sample of the pool under a text encoder."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cit_curate.config import CurateConfig
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import WindowScores
from cit_curate.errors import NotFiniteError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.records import CaptionOrder, Float32, PoolCursor

SAMPLE_CAPTIONS = 5_000
THRESHOLDS = tuple(round(0.30 + 0.05 * step, 2) for step in range(13))
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class SimilaritySample:
    """The similarities of the first captions of a scan.

    Attributes:
        similarity: float32 [sample], the best cosine over the metadata.
        never_nearest: The entries that are nearest to no sampled caption.
        seconds: The time to read, embed and search the sample.
    """

    similarity: Float32
    never_nearest: tuple[str, ...]
    seconds: float

    def quantiles(self) -> dict[float, float]:
        """The similarity at each of `QUANTILES`."""
        values = np.quantile(self.similarity, QUANTILES)
        return dict(zip(QUANTILES, (float(value) for value in values), strict=True))

    def pass_ratio(self, threshold: float) -> float:
        """The share of the sample strictly above a threshold."""
        return float((self.similarity > np.float32(threshold)).mean())

    def captions_needed(self, config: CurateConfig) -> float:
        """The captions that a lane scans to fill one budget; inf = it never fills."""
        ratio = max(self.pass_ratio(config.threshold), config.min_ratio)
        return config.budget / ratio if ratio else float("inf")

    def minutes_needed(self, config: CurateConfig) -> float:
        """The minutes of that scan at the sample's rate."""
        return self.captions_needed(config) * self.seconds / len(self.similarity) / 60

    def line(self, config: CurateConfig) -> str:
        """One line for a person who is about to start."""
        shares = ", ".join(
            f"{threshold:.2f}: {self.pass_ratio(threshold):.1%}"
            for threshold in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        )
        needed = self.captions_needed(config)
        need = (
            f"{config.budget:,} pairs need about {needed:,.0f} captions, "
            f"{_duration(self.minutes_needed(config))}"
            if needed < float("inf")
            else f"none of them, so {config.budget:,} pairs may never be found: lower --threshold"
        )
        return (
            f"of {len(self.similarity):,} sampled captions {self.pass_ratio(config.threshold):.1%} "
            f"pass the threshold {config.threshold:g} (at {shares}); {need}"
        )


def _duration(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"


def sample_similarity(
    order: CaptionOrder,
    scores: WindowScores,
    entries: Sequence[MetadataEntry],
    *,
    num_captions: int = SAMPLE_CAPTIONS,
) -> SimilaritySample:
    """Score the first captions of a scan, as the scan itself does, with tags augmented.

    Captions without a usable vector are left out.

    Raises:
        NotFiniteError: No caption has a usable vector.
    """
    started = time.perf_counter()
    window = list(order.batches(PoolCursor(), 1_024, min(num_captions, order.length)))
    scored = scores(window, ScanTotals())
    sound = np.isfinite(scored.similarity)
    if not sound.any():
        raise NotFiniteError(
            f"the text tower gives NaN, infinity or zero for all of {len(sound):,} sampled "
            f"captions, such as {window[0].rows['caption'][0].as_py()!r}; its weights are broken"
        )
    hit = set(scored.nearest[sound].tolist())
    never = tuple(entry.name for number, entry in enumerate(entries) if number not in hit)
    return SimilaritySample(scored.similarity[sound], never, time.perf_counter() - started)
