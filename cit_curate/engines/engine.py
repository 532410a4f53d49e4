"""The engine of a build or a curation: this process, spawned processes, or a Ray cluster.

An engine only maps a function of the package over tasks, which are plain values, and returns the
results in the order of the tasks. A task writes its output to a file of its own, which a later try
finds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cit_curate.config import EngineConfig
from cit_curate.engines.workers import Mapper, available_cpus, open_workers


@dataclass(frozen=True)
class Engine:
    """A map over tasks, and the number of tasks that it runs at a time."""

    mapped: Mapper
    num_workers: int


@contextmanager
def open_engine(
    config: EngineConfig, *, most_useful: int, uses_gpus: bool = False
) -> Iterator[Engine]:
    """Yield an engine for the duration of the block.

    Args:
        config: The engine and its number of workers.
        most_useful: The most workers that the local engine starts without --workers: a small job
            ends before a process has started.
        uses_gpus: Assign one GPU to each worker of a Ray cluster that has GPUs.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at its address.
        ResourceError: A worker was killed, for example because memory ran out.
    """
    if config.engine == "ray":
        from cit_curate.engines.ray_engine import open_ray

        address, num_workers = config.ray_address, config.workers
        with open_ray(address, num_workers=num_workers, uses_gpus=uses_gpus) as opened:
            yield Engine(*opened)
        return
    num_workers = config.workers or max(1, min(available_cpus(), most_useful))
    with open_workers(num_workers) as mapped:
        yield Engine(mapped, num_workers)
