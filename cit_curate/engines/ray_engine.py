"""Ray Data as the engine: a pool of actors that maps a function over tasks.

The actors import the installed package; only the function's name and the tasks are sent to them.
The paths in a task (pool, sources, result folder) must be the same on every node. This is the only
file that imports ray.
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

# Tasks and results are pickled only between this driver and its own actors, never to a file.
T = TypeVar("T")
R = TypeVar("R")

# Ray Data schedules each block separately; more blocks only cost the driver time.
MAX_BLOCKS = 2_000


@contextmanager
def open_ray(address: str, *, num_workers: int, uses_gpus: bool) -> Iterator[tuple[Mapper, int]]:
    """Yield a map over the actors of a Ray cluster, and their number.

    Args:
        address: `local` = a Ray instance on this machine, which ends with the block; `auto`,
            `HOST:PORT` or `ray://HOST:PORT` = a running cluster.
        num_workers: The number of actors; 0 = one per GPU if GPUs are used and available, else one
            per CPU.
        uses_gpus: Assign one GPU to each actor, if the cluster has any.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
        ResourceError: Ray lost an actor and could not restart it.
    """
    ray = _import_ray()
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
            "again, and it resumes from there"
        ) from error
    finally:
        if not was_up:
            ray.shutdown()


def _import_ray() -> Any:
    # No usage reports are sent by default. Settings that the user made for Ray take precedence.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its C++ part logs automatic restarts to stderr.
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
        _check_listening(address)
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"--ray-address {address}: {str(error).splitlines()[0]}; give local, auto (inside a "
            "cluster), HOST:PORT or ray://HOST:PORT"
        ) from error


def _check_listening(address: str) -> None:
    """Raise OSError unless a server listens at HOST:PORT; Ray itself retries for two minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class _TaskActor:
    """The callable of an actor, which applies the function to one task at a time."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from ray import cloudpickle

        # A CitError is returned as a result: Ray would wrap a raised one, and an error of a later
        # task could end the execution first.
        try:
            result: Any = self._function(cloudpickle.loads(row["task"]))
        except CitError as error:
            result = error
        return {"result": cloudpickle.dumps(result)}


def _mapper(ray: Any, *, num_workers: int, uses_gpus: bool) -> tuple[Mapper, int]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    resources = ray.cluster_resources()
    num_gpus = int(resources.get("GPU", 0)) if uses_gpus else 0
    most = num_workers or num_gpus or int(resources.get("CPU", 1)) or 1

    def mapped(function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        rows = [{"task": ray.cloudpickle.dumps(task)} for task in tasks]
        if not rows:
            return
        size = min(most, len(rows))
        share = min(1.0, num_gpus / size) if num_gpus else None
        blocks = math.ceil(len(rows) / math.ceil(len(rows) / MAX_BLOCKS))
        results = ray.data.from_items(rows, override_num_blocks=blocks).map(
            _TaskActor,
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
