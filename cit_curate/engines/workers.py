"""Worker processes that end with their parent, however it dies."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Protocol, TypeVar

import pyarrow as pa

from cit_curate.errors import ResourceError

# Niceness of background workers: they use the cores that the main process leaves free.
_NICENESS = 10

T = TypeVar("T")
R = TypeVar("R")


class Mapper(Protocol):
    """Applies a function to tasks and yields the results in the order of the tasks."""

    def __call__(self, function: Callable[[T], R], tasks: Iterable[T], /) -> Iterator[R]:
        """The results, each as soon as its turn comes."""


def keep_freed_memory() -> None:
    """Let this process keep freed memory, up to tens of MB, for its next arrays.

    By default glibc returns each array of more than 128 KiB to the kernel, which fills the next one
    with zeros, page by page: a third of the time of reading YFCC. The threshold rises to the size
    of the largest block ever returned, 32 MiB at most (`mallopt(3)`, M_MMAP_THRESHOLD).
    """
    bytearray(31 << 20)


def available_cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_workers(num_workers: int) -> Iterator[Mapper]:
    """Yield a map over spawned processes; with one worker, over this process itself.

    Raises:
        ResourceError: A worker was killed, for example because memory ran out.
    """
    if num_workers == 1:
        yield map
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # a fork copies locks held by threads
        initializer=_start_worker,
    )
    try:
        # Start them now, not at the first task: the caller may work in the meantime.
        for _ in range(min(num_workers, available_cpus())):
            executor.submit(os.getpid)
        yield executor.map
    except BrokenProcessPool as error:
        raise ResourceError(
            f"one of {num_workers} workers was killed, perhaps for want of memory; run the same "
            "command again, with fewer --workers, and it resumes from there"
        ) from error
    except BaseException:
        # Their files are whole or absent, and their results are no longer needed.
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def workers_beside(num_workers: int) -> Iterator[Executor]:
    """Yield an executor of background processes, at a lower priority than this process.

    They are outside its process group, so a signal to stop reaches this process alone. They end
    with the block at once, even in the middle of a task.
    """
    leash, held = multiprocessing.Pipe(duplex=False)
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_beside,
        initargs=(leash,),
    )
    try:
        yield executor
    finally:
        held.close()
        executor.shutdown(cancel_futures=True)
        leash.close()


def _start_beside(leash: Connection) -> None:
    os.setpgrp()
    os.nice(_NICENESS)
    _start_worker(leash)


def _start_worker(*leashes: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its workers
    pa.set_cpu_count(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        # A queue that other workers also hold open outlives a killed parent: without this thread,
        # they would wait for tasks for ever.
        wait([sentinel, *leashes])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
