"""Files below an image root: opened only inside it, read at an offset, cached while unchanged."""

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from cit_curate.images.rejected import ImageRejected

T = TypeVar("T")

Identity = tuple[str, int, int, int, int]
"""Path, device, inode, bytes and time of change: a rewritten file has another identity."""


@dataclass(frozen=True)
class OpenFile:
    """A plain file that is open for reading.

    Attributes:
        descriptor: The file descriptor. It is read by `os.pread`, which has no position, so threads
            and forks share it safely.
        path: The absolute path, with links resolved; the URL of a remote file.
        num_bytes: The size.
        identity: The key under which its content is cached.
    """

    descriptor: int
    path: Path | str
    num_bytes: int
    identity: Identity

    @property
    def for_arrow(self) -> Any:
        """The source to pass to pyarrow."""
        return self.path

    def local(self) -> Path:
        """The path of a local file, to be mapped."""
        return Path(self.path)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        data = os.pread(self.descriptor, size, offset)
        if len(data) == size or not data:
            return data
        chunks = [data]
        while data and sum(map(len, chunks)) < size:
            done = sum(map(len, chunks))
            data = os.pread(self.descriptor, size - done, offset + done)
            chunks.append(data)
        return b"".join(chunks)


@contextmanager
def opened_inside(root: Path, relative: str) -> Iterator[OpenFile]:
    """Open a plain file that lies inside `root` even after links are resolved.

    Raises:
        ImageRejected: `missing_image` or `path_escapes`.
    """
    try:
        path = (root / relative).resolve()
        if not path.is_relative_to(root.resolve()):
            raise ImageRejected("path_escapes", f"{relative} leads outside {root}")
        # O_NONBLOCK: opening a named pipe would otherwise wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageRejected("missing_image", f"{root / relative}: {error}") from error
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise ImageRejected("missing_image", f"{path} is not a plain file")
        identity = (str(path), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        yield OpenFile(descriptor, path, state.st_size, identity)
    finally:
        os.close(descriptor)


class BoundedCache(Generic[T]):
    """A cache that drops the least recently used values once the sum of sizes exceeds `max_size`.

    Its owner chooses the unit of the sizes (bytes, files). It is safe for several threads. A forked
    child starts with an empty one: a thread that the child lacks may have held the parent's lock.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._start()

    def get(self, key: object, make: Callable[[], tuple[T, int]]) -> T:
        """The value of a key; `make` returns a missing one and its size.

        Two threads may make the same value at once, rather than one waiting for the other.
        """
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value, size = make()
        with self._lock:
            self._size += size - self._values.pop(key, (value, 0))[1]
            self._values[key] = (value, size)
            while self._size > self._max_size and len(self._values) > 1:
                self._size -= self._values.popitem(last=False)[1][1]
        return value

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._values: OrderedDict[object, tuple[T, int]] = OrderedDict()
        self._size = 0
