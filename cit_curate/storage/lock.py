"""One writer of a folder or file at a time: a lock that dies with its owner.

`filelock` would replace only the loop in `_acquire`: it names no owner, cannot query a lock without
opening it for writing, and leaves its file behind.
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
    """The lock file beside a folder or file."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Be the only writer of a folder or file while the block runs; its parent folder is created.

    The kernel releases the lock when its owner dies, however it dies, so no lock is ever stale.

    Raises:
        ResourceError: Another process writes there; the message names its pid and host.
    """
    lock = lock_path(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(lock)
    try:
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def writer_of(path: Path) -> str | None:
    """The writer of a folder or file, as `process PID on HOST`; None = none. Writes nothing."""
    try:
        descriptor = os.open(lock_path(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(descriptor)
    finally:
        os.close(descriptor)
    return None


def may_have_writer(path: Path) -> bool:
    """Whether a folder or file may have a writer, even where locks do not reach other machines.

    A lock that names another machine counts as held, though its owner may have been killed.
    """
    try:
        host = json.loads(lock_path(path).read_bytes())["host"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):  # its owner is just writing it
        host = socket.gethostname()
    return host != socket.gethostname() or writer_of(path) is not None


@contextmanager
def waiting_lock(lock: Path) -> Iterator[None]:
    """Wait for a lock file and hold it while the block runs; the file stays."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _acquire(lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise ResourceError(f"{lock} is held by {owner}; wait for it to end") from None
        # The last owner may have removed the file between our open and our lock.
        try:
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process that is just starting"
