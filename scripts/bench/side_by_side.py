"""Ways of doing the same thing, timed in turn in one run, as a table and as JSON.

Every benchmark compares: with a plain way, with the machine's own limit, or both. The ways take
turns, so that a machine that drifts hits them all; a ratio is that of the medians, and the spread
of each way stands beside it.
"""

import json
import platform
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from cit_curate.engines.workers import available_cpus

T = TypeVar("T")
Facts = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Timing:
    """One way of doing a thing.

    Attributes:
        name: What the table calls it.
        seconds: Wall-clock seconds of each repeat.
        items: How many `Comparison.unit` one repeat goes through.
        notes: Further numbers of the way, by the heading of their column.
    """

    name: str
    seconds: tuple[float, ...]
    items: float
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median seconds of a repeat."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Items a second, at the median."""
        return self.items / self.median


@dataclass(frozen=True)
class Comparison:
    """Timings of one run that stand beside each other.

    Attributes:
        title: What was done.
        unit: What is counted, in the plural.
        timings: Those that are compared with the first.
        facts: What the input was, by name.
    """

    title: str
    unit: str
    timings: tuple[Timing, ...]
    facts: Facts = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """Name of the timing that the others are compared with."""
        return self.timings[0].name

    def __getitem__(self, name: str) -> Timing:
        return next(timing for timing in self.timings if timing.name == name)

    def ratio(self, name: str) -> float:
        """How many times faster than the baseline."""
        return self[name].rate / self[self.baseline].rate

    def table(self) -> str:
        """The comparison as a Markdown table below its title and facts."""
        facts = "".join(f"; {name} {_short(value)}" for name, value in self.facts.items())
        headings = list(dict.fromkeys(name for each in self.timings for name in each.notes))
        head = ["way", f"{self.unit}/s", "min", "max", f"x {self.baseline}", *headings]
        rows = [head, ["---", *["---:"] * (len(head) - 1)]]
        for each in self.timings:
            rates = (each.rate, each.items / max(each.seconds), each.items / min(each.seconds))
            cells = [each.name, *map(_short, rates), f"{self.ratio(each.name):.2f}"]
            rows.append([*cells, *(each.notes.get(name, "") for name in headings)])
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        repeats = len(self.timings[0].seconds)
        return f"**{self.title}** ({machine()}; {repeats} repeats{facts})\n\n{lines}\n"


def compare_ways(
    title: str,
    unit: str,
    ways: Mapping[str, Callable[[], object]],
    items: float,
    *,
    repeats: int,
    warm_up: bool = True,
    notes: Callable[[str], Mapping[str, str]] = lambda name: {},
    facts: Facts | None = None,
) -> Comparison:
    """Time ways of doing one thing, in turn.

    Args:
        title: What is done.
        unit: What is counted, in the plural.
        ways: What to time, by name; the first is the baseline.
        items: How many of the unit one call goes through.
        repeats: How often each is timed.
        warm_up: Run each once before, untimed: lazy imports, caches of files, memory.
        notes: Further numbers of a way, asked for when all have run.
        facts: What the input was, by name.
    """
    seconds = take_turns(ways, repeats=repeats, warm_up=warm_up)
    timings = tuple(Timing(name, times, items, notes(name)) for name, times in seconds.items())
    return Comparison(title, unit, timings, facts or {})


def take_turns(
    ways: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: bool = True
) -> dict[str, tuple[float, ...]]:
    """Wall-clock seconds of each way, run in turn; `compare_ways` has the arguments."""
    timed = {name: partial(seconds_of, way) for name, way in ways.items()}
    turns = in_turn(timed, repeats=repeats + warm_up)
    return {name: seconds[warm_up:] for name, seconds in turns.items()}


def in_turn(ways: Mapping[str, Callable[[], T]], *, repeats: int) -> dict[str, tuple[T, ...]]:
    """The results of each way, called in turn."""
    turns = [[way() for way in ways.values()] for _ in range(repeats)]
    return dict(zip(ways, zip(*turns, strict=True), strict=True))


def seconds_of(way: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def machine() -> str:
    """Processor, cores that this process may use, and the day."""
    return f"{_processor()}, {available_cpus()} cores, {datetime.now(UTC):%Y-%m-%d}"


def bench_parser(doc: str | None) -> ArgumentParser:
    """A parser with the flags of every benchmark, `--json` and `--repeats`.

    Args:
        doc: The benchmark's docstring, whose first line describes it.
    """
    parser = ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each way")
    return parser


def add_device(parser: ArgumentParser) -> None:
    """The flag `--device` of benchmarks that also run on a GPU."""
    parser.add_argument("--device", default="cpu", help="cpu, or cuda, in float16")


def show(comparisons: list[Comparison], json_file: Path | None) -> None:
    """Print the tables, and write them to a JSON file when one is named."""
    for each in comparisons:
        print(each.table(), flush=True)
    if json_file is None:
        return
    rows = [{**asdict(each), "baseline": each.baseline} for each in comparisons]
    document = {"machine": machine(), "comparisons": rows}
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _short(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
