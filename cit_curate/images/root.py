"""Image roots: a folder or its URL. Of remote files, only ranges are read."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cit_curate.errors import ConfigError
from cit_curate.images.open_file import BoundedCache, Identity, OpenFile, opened_inside
from cit_curate.images.rejected import ImageRejected
from cit_curate.storage.remote import RemoteFile, below, read_range, remote_url, stat_file
from cit_curate.storage.remote_cache import local_copy

# A request to a store takes as long as the transfer of some hundred kB. So small consecutive reads
# (a zip member's header, then its bytes) are served by one request of up to this size.
READ_AHEAD_BYTES = 256 << 10
_SMALL_BYTES = 4 << 10
_MAX_FILES = 65_536


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a store, as an image root."""

    url: str


ImageRoot = Path | RemoteFolder

# Each file is looked up once per process. An archive that is rewritten during a run is detected by
# the checks of its members, as a damaged archive.
_files: BoundedCache[RemoteFile] = BoundedCache(_MAX_FILES)


@dataclass
class _Window:
    start: int = 0
    data: bytes = b""


@dataclass(frozen=True)
class RemoteOpenFile(OpenFile):
    """A file of a store, for reads at any offset; belongs to one thread."""

    file: RemoteFile
    _window: _Window = field(default_factory=_Window, compare=False)

    @property
    def for_arrow(self) -> Any:
        """A file object, of which pyarrow reads the footer and one column of one row group."""
        return pa.PythonFile(_Seekable(self), mode="r")

    def local(self) -> Path:
        """The path of a cached copy: an Arrow stream can only be read from its start."""
        return local_copy(self.file)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        end = min(offset + size, self.num_bytes)
        if end <= offset:
            return b""
        window = self._window
        if offset < window.start or end > window.start + len(window.data):
            ahead = READ_AHEAD_BYTES if size <= _SMALL_BYTES else end - offset
            window.data = read_range(
                self.file.url, offset, min(offset + max(ahead, end - offset), self.num_bytes)
            )
            window.start = offset
        return window.data[offset - window.start : end - window.start]


class _Seekable(io.RawIOBase):
    """A remote file as a seekable file object."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.num_bytes}
        self._position = start[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        num_bytes = self._file.num_bytes - self._position if size < 0 else size
        data = self._file.read(self._position, num_bytes)
        self._position += len(data)
        return data


@contextmanager
def opened_below(root: ImageRoot, relative: str) -> Iterator[OpenFile]:
    """Open a plain file below an image root.

    Raises:
        ImageRejected: `missing_image` or `path_escapes`.
        ResourceError: The network failed at every try.
    """
    if isinstance(root, Path):
        with opened_inside(root, relative) as file:
            yield file
        return
    url = _url(root, relative)

    def look_up() -> tuple[RemoteFile, int]:
        file = stat_file(url)
        if file is None:
            raise ImageRejected("missing_image", f"{url}: there is no such file")
        return file, 1

    remote = _files.get(url, look_up)
    identity: Identity = (url, 0, 0, remote.bytes, hash(remote.version))
    try:
        yield RemoteOpenFile(-1, url, remote.bytes, identity, remote)
    except FileNotFoundError as error:
        raise ImageRejected("missing_image", f"{url}: it is not there any more") from error


def whole_file(root: RemoteFolder, relative: str, max_bytes: int) -> bytes:
    """The bytes of a single image of a store, in one request.

    Raises:
        ImageRejected: `missing_image`, `path_escapes` or `too_many_bytes`.
        ResourceError: The network failed at every try.
    """
    url = _url(root, relative)
    try:
        data = read_range(url, 0, max_bytes + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ImageRejected("missing_image", f"{url}: there is no such file") from error
    if len(data) > max_bytes:
        raise ImageRejected("too_many_bytes", f"{url} has more than {max_bytes:,} bytes")
    return data


def image_root(text: str, *, pool_url: str | None) -> ImageRoot:
    """The image root in a pool's manifest.

    Args:
        text: A folder or a URL.
        pool_url: The URL of the pool; None = a pool on a file system, which its user trusts.

    Raises:
        ConfigError: A pool in a store names a folder of this machine or another bucket: the author
            of a manifest must not choose which files are read here.
    """
    url = remote_url(text)
    if pool_url is None:
        return Path(text) if url is None else RemoteFolder(url)
    if url is not None and _bucket(url) == _bucket(pool_url):
        return RemoteFolder(url)
    raise ConfigError(
        f"{pool_url}: its images lie in {text}, and images of a pool in a bucket are read from "
        "that bucket alone; copy them there and build the pool with --image-root URL, or use a "
        "pool on a disk, which may name any image root"
    )


def _url(root: RemoteFolder, relative: str) -> str:
    url = below(root.url, relative)
    if url is None:
        raise ImageRejected("path_escapes", f"{relative!a} is no path below {root.url}")
    return url


def _bucket(url: str) -> tuple[str, ...]:
    protocol, _, path = url.partition("://")
    # On the hub, one repository (datasets/ORG/NAME or ORG/NAME) counts as a bucket.
    parts = path.split("/")
    return (protocol, *parts[: 1 if protocol != "hf" else 3 if parts[0] == "datasets" else 2])
