"""Ray Data as the engine: a pool of actors that maps a function over tasks.

The actors import the installed package; nothing but the function's name and the tasks travels.
What the tasks name (pool, sources, folder of results) must be at the same path on every node.
The only file that imports ray.
"""

import logging
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cit_curate.engines.workers import Mapper, available_cpus
from cit_curate.errors import CitError, ConfigError, ResourceError

T = TypeVar("T")
R = TypeVar("R")

# Ray Data plans every block by itself; more of them only cost the driver time.
MAX_BLOCKS = 2_000


@contextmanager
def open_ray(address: str, *, num_workers: int, uses_gpus: bool) -> Iterator[tuple[Mapper, int]]:
    """Give a map over the actors of a Ray cluster, and their number, while the block runs.

    Args:
        address: `local`: a Ray of this machine, that ends with the block; `auto`, `HOST:PORT` or
            `ray://HOST:PORT`: a cluster that runs.
        num_workers: Actors; 0: one per GPU if they are used and there are any, else one per CPU.
        uses_gpus: Give each actor a GPU where the cluster has some.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
        ResourceError: Ray lost an actor for good.
    """
    ray = _imported()
    was_up = ray.is_initialized()
    if not was_up:
        _connect(ray, address, num_workers)
    try:
        yield _mapper(ray, num_workers=num_workers, uses_gpus=uses_gpus)
    except ray.exceptions.RayTaskError:
        raise  # a bug, with the traceback of the actor
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"Ray lost what it was working on: {str(error).splitlines()[0]}; run the same command "
            "again, and it goes on from there"
        ) from error
    finally:
        if not was_up:
            ray.shutdown()


def _imported() -> Any:
    # Nobody is contacted unasked. Its own settings win, for whoever made them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its C++ half tells on stderr of restarts that it does by itself.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError('--engine ray needs Ray Data: pip install "cit[ray]"') from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def _connect(ray: Any, address: str, num_workers: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"num_cpus": num_workers or available_cpus(), "include_dashboard": False}
    try:
        _check_answers(address)
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"--ray-address {address}: {str(error).splitlines()[0]}; give local, auto (inside a "
            "cluster), HOST:PORT or ray://HOST:PORT"
        ) from error


def _check_answers(address: str) -> None:
    """Raise OSError unless somebody listens at HOST:PORT; Ray itself tries for two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class _Applied:
    """What an actor holds: the function, which it applies to one task at a time."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from ray import cloudpickle

        # An error that a person can act on is a result: Ray would wrap it, and others would end
        # the execution out of order.
        try:
            result: Any = self._function(cloudpickle.loads(row["task"]))
        except CitError as error:
            result = error
        return {"result": cloudpickle.dumps(result)}


def _mapper(ray: Any, *, num_workers: int, uses_gpus: bool) -> tuple[Mapper, int]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    there = ray.cluster_resources()
    num_gpus = int(there.get("GPU", 0)) if uses_gpus else 0
    most = num_workers or num_gpus or int(there.get("CPU", 1)) or 1

    def mapped(function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        rows = [{"task": ray.cloudpickle.dumps(task)} for task in tasks]
        if not rows:
            return
        size = min(most, len(rows))
        share = min(1.0, num_gpus / size) if num_gpus else None
        blocks = math.ceil(len(rows) / math.ceil(len(rows) / MAX_BLOCKS))
        results = ray.data.from_items(rows, override_num_blocks=blocks).map(
            _Applied,
            fn_constructor_args=(function,),
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=1,
            num_gpus=share,
        )
        for row in results.iter_rows():
            result = ray.cloudpickle.loads(row["result"])
            if isinstance(result, CitError):
                raise result
            yield result

    return mapped, most
