"""Calls in processes of their own, so that their memory is their own."""

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Measured(Generic[T]):
    """The result of a call, its wall-clock seconds, and the peak memory of its process in MiB."""

    result: T
    seconds: float
    peak: float


def in_own_process(way: Callable[..., T], *args: object) -> Measured[T]:
    """Call a function of a module in a fresh process."""
    with fresh_process() as process:
        return process.submit(_measured, way, args).result()


def fresh_process() -> ProcessPoolExecutor:
    """One process, which keeps its modules' state from call to call."""
    return ProcessPoolExecutor(1, get_context("spawn"))


def peak_memory() -> float:
    """MiB of this process that were in RAM at most."""
    return _status("VmHWM")


def resident_memory() -> float:
    """MiB of this process that are in RAM now."""
    return _status("VmRSS")


def processor_seconds(pids: Sequence[int]) -> float:
    """Seconds of the processors that this process and others have used; of this one alone without
    `/proc`.
    """
    ticks = 0
    for stat in (Path(f"/proc/{pid}/stat") for pid in pids):
        if stat.is_file():
            # Fields 14 and 15, counted from the name in parentheses, which is the second.
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _status(field: str) -> float:
    """MiB by the name of a line; without `/proc`, the peak, which may count the parent's, too."""
    status = Path("/proc/self/status")
    if not status.is_file():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    found = re.search(rf"{field}:\s*(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) / 1024


def _measured(way: Callable[..., T], args: tuple[object, ...]) -> Measured[T]:
    started = time.perf_counter()
    result = way(*args)
    return Measured(result, time.perf_counter() - started, peak_memory())
