"""The error of a scan whose passes ended before it had its pairs, with a setting that works."""

import math

from cit_curate.config import CurateConfig
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.selection import suggest_threshold
from cit_curate.errors import ShortfallError


def shortfall_error(
    config: CurateConfig, totals: ScanTotals, *, where: str, needed: int, repeats: int
) -> ShortfallError:
    """The error for too few pairs.

    Args:
        config: The rules of the scan.
        totals: The totals of the scan.
        where: The outer step and the lane, in words.
        needed: The pairs that were requested.
        repeats: How often the same caption may have been scanned.
    """
    suggested = suggest_threshold(totals.histogram, needed * repeats)
    ratio = needed * repeats / max(totals.scanned, 1)
    if suggested is None or ratio > 1:
        advice = (
            f"the pool has too few captions for {needed:,} pairs at any threshold: request "
            "fewer (--curate-every; in `cit curate` also --max-pairs), or raise --max-passes"
        )
    elif config.keep_ratio:
        advice = (
            f"--keep-ratio {math.ceil(1000 * ratio) / 1000:g} would have kept enough; "
            "or raise --max-passes, or take --on-shortfall train"
        )
    else:
        advice = (
            f"--threshold {suggested:.2f} would have kept enough; "
            "or raise --min-ratio or --max-passes, or take --on-shortfall train"
        )
    rule = f"threshold {config.threshold:g}"
    if config.keep_ratio:
        rule = f"a kept ratio of {config.keep_ratio:g}"
    message = (
        f"{where}: {totals.scanned:,} captions "
        f"({config.max_passes} pool pass(es)) gave {totals.kept:,} of "
        f"{needed:,} pairs at {rule}; "
        f"the best similarity seen is {totals.best_similarity:.3f}; {advice}"
    )
    return ShortfallError(
        message, best_similarity=totals.best_similarity, suggested_threshold=suggested
    )
