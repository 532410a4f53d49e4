"""One writer of a pool or run at a time: a lock that dies with its owner."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cit_curate.errors import ResourceError


@contextmanager
def owner_lock(path: Path) -> Iterator[None]:
    """Hold `path` as a lock while the block runs.

    The kernel lets go of it when the owner dies, however it dies, so no lock is ever stale.

    Raises:
        ResourceError: Somebody else holds it; names their pid and host.
    """
    descriptor = _locked(path)
    try:
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def holder(path: Path) -> str | None:
    """Who holds a lock: `process PID on HOST`; None when nobody does. Nothing is written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _described(os.pread(descriptor, 1000, 0).decode("utf-8", errors="replace"))
    finally:
        os.close(descriptor)
    return None


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 1000, 0).decode("utf-8", errors="replace")
            os.close(descriptor)
            raise ResourceError(
                f"{path} is held by {_described(owner)}; wait for it to end"
            ) from None
        # The last owner may have removed the file between our open and our lock.
        try:
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _described(owner: str) -> str:
    try:
        value = json.loads(owner)
        return f"process {value['pid']} on {value['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process that is just starting"
