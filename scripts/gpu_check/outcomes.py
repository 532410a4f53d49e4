"""How checks ended, as a table, as JSON and as an exit code."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Result = Literal["passed", "failed", "skipped", "not run"]
Measured = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        measured: Numbers and names, by what they are.
        wrong: What is not as it should be; nothing where the check has passed.
    """

    measured: Measured
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How one check ended.

    Attributes:
        check: The name of the check.
        result: `not run` is neither passed nor failed: the time was over.
        why: The reason where it has not passed.
        seconds: Wall-clock seconds.
        measured: See `Finding`.
    """

    check: str
    result: Result
    why: str = ""
    seconds: float = 0.0
    measured: Measured = field(default_factory=dict)


def outcome_of(check: str, finding: Finding) -> Outcome:
    """A check that ran to its end has failed if it found anything wrong."""
    result: Result = "failed" if finding.wrong else "passed"
    return Outcome(check, result, "; ".join(finding.wrong), measured=finding.measured)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    rows = ["| check | result | seconds | measured | why |", "| --- | --- | ---: | --- | --- |"]
    for each in outcomes:
        measured = "; ".join(f"{name} {_short(value)}" for name, value in each.measured.items())
        cells = (each.check, each.result, f"{each.seconds:.0f}", measured, each.why)
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(rows)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Such as `9 passed, 1 failed, 2 skipped`."""
    counts = Counter(each.result for each in outcomes)
    return ", ".join(f"{counts[name]} {name}" for name in Result.__args__ if counts[name])  # type: ignore[attr-defined]


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """1 if any check failed; else 2 if any was not run, so that it cannot be taken for passed."""
    results = {each.result for each in outcomes}
    return 1 if "failed" in results else 2 if "not run" in results else 0


def document(outcomes: Sequence[Outcome], facts: Measured) -> dict[str, Any]:
    """The outcomes for a JSON file, below what was run."""
    return {
        **facts,
        "exit_code": exit_code(outcomes),
        "checks": [asdict(each) for each in outcomes],
    }


def _short(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
