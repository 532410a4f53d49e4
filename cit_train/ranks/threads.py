"""The compute threads of a rank: a setting, since their number changes floating-point sums."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cit_curate.engines.workers import available_cpus


@contextmanager
def compute_threads(num_threads: int) -> Iterator[None]:
    """Set the number of compute threads for the block, whatever OMP_NUM_THREADS is.

    Args:
        num_threads: The threads of this rank; 0 = an equal share of the machine's cores.
    """
    before = torch.get_num_threads()
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(num_threads or max(available_cores() // ranks_here, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cores() -> int:
    """The number of cores that this process may use; hardware threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return available_cpus()
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    paths = {number: Path(siblings.format(number)) for number in os.sched_getaffinity(0)}
    return len({path.read_text() if path.is_file() else n for n, path in paths.items()})
