"""The arms of a study side by side: means, spreads, and paired differences with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from cit_curate.terminal import add_row, inert
from cit_train.studies.run_arm import ArmResult

# Student's t, of which 97.5 % lie below, by degrees of freedom; beyond, that of a normal.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T_BEYOND = 1.96


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm over its seeds.

    Attributes:
        arm: The name of the arm.
        seeds: The number of seeds.
        value: The mean of the compared number, in percent.
        spread: Its standard deviation over the seeds; None of one seed.
        difference: The mean difference from the reference arm, seed by seed; None for that arm.
        interval: The half-width of its 95 % interval (paired t); None of one seed.
        accuracy: The mean accuracy over all pictures, in percent.
        scanned: The mean captions scanned.
        kept_ratio: The mean share of them that was kept.
        pairs: The mean number of different pairs that were trained on.
        seconds: The mean wall-clock seconds.
    """

    arm: str
    seeds: int
    value: float
    spread: float | None
    difference: float | None
    interval: float | None
    accuracy: float
    scanned: float
    kept_ratio: float
    pairs: float
    seconds: float


def summaries(results: Sequence[ArmResult], *, reference: str, metric: str) -> list[ArmSummary]:
    """One summary for each arm, in the order of the results.

    Args:
        results: The runs.
        reference: The arm that the others are compared with.
        metric: `mean_per_class` or `accuracy`.
    """
    arms = dict.fromkeys(result.arm for result in results)
    base = {each.seed: getattr(each, metric) for each in results if each.arm == reference}
    found = []
    for arm in arms:
        runs = [result for result in results if result.arm == arm]
        values = [getattr(run, metric) for run in runs]
        differences = [
            getattr(run, metric) - base[run.seed]
            for run in runs
            if arm != reference and run.seed in base
        ]
        found.append(
            ArmSummary(
                arm=arm,
                seeds=len(runs),
                value=mean(values),
                spread=stdev(values) if len(values) > 1 else None,
                difference=mean(differences) if differences else None,
                interval=half_width(differences),
                accuracy=mean(run.accuracy for run in runs),
                scanned=mean(run.scanned for run in runs),
                kept_ratio=mean(run.kept_ratio for run in runs),
                pairs=mean(run.pairs for run in runs),
                seconds=mean(run.seconds for run in runs),
            )
        )
    return found


def half_width(differences: Sequence[float]) -> float | None:
    """Half the 95 % interval of a mean (Student's t); None of fewer than two values."""
    if len(differences) < 2:
        return None
    freedom = len(differences) - 1
    quantile = _T[freedom - 1] if freedom <= len(_T) else _T_BEYOND
    return quantile * stdev(differences) / math.sqrt(len(differences))


def study_report(
    results: Sequence[ArmResult], summary: Sequence[ArmSummary], **facts: Any
) -> dict[str, Any]:
    """A JSON document with the facts, one object an arm and one a run."""
    return {
        **facts,
        "arms": [asdict(each) for each in summary],
        "runs": [asdict(each) for each in results],
    }


def comparison_table(summary: Sequence[ArmSummary], *, metric: str) -> Table:
    """A line for each arm."""
    table = Table(
        title=inert(f"{metric.replace('_', ' ')} after the last update, in %"),
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("arm", no_wrap=True)
    for name in ("seeds", "mean", "±", "against\nreference", "captions\nscanned"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("kept", "different\npairs", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in summary:
        add_row(
            table,
            each.arm,
            str(each.seeds),
            f"{each.value:.1f}",
            "" if each.spread is None else f"{each.spread:.1f}",
            _difference(each),
            f"{each.scanned:,.0f}",
            f"{each.kept_ratio:.0%}",
            f"{each.pairs:,.0f}",
            f"{each.seconds:,.0f}",
        )
    return table


def _difference(summary: ArmSummary) -> str:
    if summary.difference is None:
        return ""
    around = "" if summary.interval is None else f" ± {summary.interval:.1f}"
    return f"{summary.difference:+.1f}{around}"
