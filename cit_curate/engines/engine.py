"""Where the pieces of a build or a curation run: here, in spawned processes, or on a Ray cluster.

An engine only maps: a function of the package over tasks, which are values, with the results in the
order of the tasks. What a task makes lies in a file of its own, so that the next try finds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cit_curate.config import EngineConfig
from cit_curate.engines.workers import Mapper, available_cpus, open_workers


@dataclass(frozen=True)
class Engine:
    """A map, and how many tasks it works on at a time."""

    mapped: Mapper
    num_workers: int


@contextmanager
def open_engine(
    config: EngineConfig, *, most_useful: int, uses_gpus: bool = False
) -> Iterator[Engine]:
    """Give an engine while the block runs.

    Args:
        config: Which engine, and how many workers.
        most_useful: Workers that the local engine starts at most when --workers does not say: a
            small job is done before a process has started.
        uses_gpus: Give each worker of a Ray cluster that has GPUs one of them.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at its address.
        ResourceError: A worker was killed, as happens when memory runs out.
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
