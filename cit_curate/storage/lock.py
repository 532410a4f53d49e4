"""One writer of a folder or file at a time: a lock that dies with its owner.

`filelock` would replace the loop of `_locked` alone: it names no owner, asks nobody without opening
the lock for writing, and leaves its file behind.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cit_curate.errors import ResourceError


def lock_path(path: Path) -> Path:
    """The lock of a folder or file, beside it."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Be the only writer of a folder or file while the block runs; its parent folder is made.

    The kernel lets go of the lock when its owner dies, however it dies, so no lock is ever stale.

    Raises:
        ResourceError: Somebody else writes there; names their pid and host.
    """
    lock = lock_path(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(lock)
    try:
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def writer_of(path: Path) -> str | None:
    """Who writes a folder or file: `process PID on HOST`; None = nobody. Nothing is written."""
    try:
        descriptor = os.open(lock_path(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _described(descriptor)
    finally:
        os.close(descriptor)
    return None


def may_have_writer(path: Path) -> bool:
    """Whether somebody writes a folder or file, also where locks do not reach other machines.

    A lock that names another machine counts as held, though its owner may have been killed.
    """
    try:
        host = json.loads(lock_path(path).read_bytes())["host"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):  # just being taken
        host = socket.gethostname()
    return host != socket.gethostname() or writer_of(path) is not None


@contextmanager
def waiting_lock(lock: Path) -> Iterator[None]:
    """Hold a file as a lock while the block runs, once nobody else does; the file stays."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _locked(lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _described(descriptor)
            os.close(descriptor)
            raise ResourceError(f"{lock} is held by {owner}; wait for it to end") from None
        # The last owner may have removed the file between our open and our lock.
        try:
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _described(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process that is just starting"
