"""Worker processes that die with their parent, however it dies."""

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

# Of processes beside the one that matters: they take the cores that it leaves.
_NICENESS = 10

T = TypeVar("T")
R = TypeVar("R")


class Mapper(Protocol):
    """Applies a function to tasks, and gives the results in the order of the tasks."""

    def __call__(self, function: Callable[[T], R], tasks: Iterable[T], /) -> Iterator[R]:
        """The results, as they come."""


def keep_freed_memory() -> None:
    """Let this process keep tens of MB that it frees, for its next arrays.

    Else glibc gives each array of more than 128 KiB back, and the kernel fills the next one with
    zeros, page by page: a third of the time of reading YFCC. It stops below the size of the largest
    block that it has ever given back, 32 MiB at most (`mallopt(3)`, M_MMAP_THRESHOLD).
    """
    bytearray(31 << 20)


def available_cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def open_workers(num_workers: int) -> Iterator[Mapper]:
    """Give a map over spawned processes; for one worker, over this process itself.

    Raises:
        ResourceError: A worker was killed, as happens when memory runs out.
    """
    if num_workers == 1:
        yield map
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # a fork copies locks that threads hold
        initializer=_start_worker,
    )
    try:
        # They start at once, not at the first task: the caller may have something to do meanwhile.
        for _ in range(min(num_workers, available_cpus())):
            executor.submit(os.getpid)
        yield executor.map
    except BrokenProcessPool as error:
        raise ResourceError(
            f"one of {num_workers} workers was killed, perhaps for want of memory; run the same "
            "command again, with fewer --workers, and it goes on from there"
        ) from error
    except BaseException:
        # What they write is whole or absent, and nobody waits for it any more.
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def workers_beside(num_workers: int) -> Iterator[Executor]:
    """Give spawned processes that work beside this one: what it computes itself goes first.

    They are no part of its process group, whose signals ask it alone to stop, and end at once with
    the block, whatever they are at.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    pa.set_cpu_count(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        # A killed parent closes no queue that its other workers also hold: without this, they wait
        # for tasks for ever.
        wait([sentinel, *leashes])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
