"""Measure the rates of docs/scale.md on the machine at hand.

    python -m scripts.bench.scale_parameters --out scripts/bench/scale_parameters.json
    python -m scripts.bench.scale_parameters --device cuda --out gpu.json

Every rate is the median of `--repeats` measurements, with the lowest and the highest. Those of one
core, and those of a CPU that stands in for an accelerator, run in one thread and count processor
time. What depends on floating-point work is given as its share of the rate of matrix products that
is measured right after it.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from scripts.bench.scale_probes import PROBES, Probe
from scripts.bench.scale_rig import Rig


@dataclass(frozen=True)
class Measurement:
    """One parameter: median, lowest and highest of its measurements, and its unit."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    what: str


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="at least 3")
    parser.add_argument("--only", default="", help="names of parameters, separated by commas")
    parser.add_argument("--out", type=Path, help="also write the numbers there")
    asked = parser.parse_args()
    if asked.repeats < 3:
        parser.error(f"--repeats is {asked.repeats}; a median needs at least 3")
    wanted = set(filter(None, asked.only.split(",")))
    unknown = wanted - {probe.name for probe in PROBES}
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch sees no GPU here; use --device cpu")
    if asked.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cit-scale-") as folder:
        rig = Rig.build(asked.device, Path(folder))
        chosen = [probe for probe in PROBES if not wanted or probe.name in wanted]
        measured = measure(chosen, rig, repeats=asked.repeats)
    _print_table(measured)
    if asked.out:
        head = {"machine": describe_machine(asked.device), "repeats": asked.repeats}
        rows = [asdict(each) for each in measured]
        asked.out.write_text(json.dumps(head | {"parameters": rows}, indent=1) + "\n")


def measure(
    probes: list[Probe], rig: Rig, *, repeats: int, tell: Callable[[str], None] | None = None
) -> list[Measurement]:
    """Run each probe `repeats` times, after one that does not count."""
    found = []
    for probe in probes:
        started = time.perf_counter()
        probe.run(rig)
        values = [probe.run(rig) for _ in range(repeats)]
        middle = statistics.median(values)
        found.append(
            Measurement(probe.name, middle, min(values), max(values), probe.unit, probe.what)
        )
        line = f"{probe.name}: {middle:,.4g} {probe.unit} ({time.perf_counter() - started:.0f} s)"
        (tell or _say)(line)
    return found


def describe_machine(device: str) -> dict[str, str | int]:
    """What the numbers belong to: processor, threads, versions and date."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {
        "device": device,
        "name": name,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _print_table(measured: list[Measurement]) -> None:
    print(f"{'parameter':<28}{'median':>12}{'low':>12}{'high':>12}  unit")
    for each in measured:
        values = "".join(f"{value:>12,.4g}" for value in (each.value, each.low, each.high))
        print(f"{each.name:<28}{values}  {each.unit}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
