"""Download of one file, resumed where it broke off, even after a kill.

    PATH               the complete file, with its record: see `stored_file`
    PATH.part          the bytes that have arrived
    PATH.part.json     the server's version: a file that has changed since is fetched from the start

Neither torch.hub nor pooch resumes, and huggingface_hub only does so for its own hub.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_curate.storage.durable import atomic_file, file_sha256, read_json, write_json
from cit_curate.storage.lock import writer_lock
from cit_train.hub.stored_file import StoredFile, beside, check_sha256, stored_file, write_record

__all__ = ["Progress", "download"]

MAX_BYTES = 16 * 10**9
MAX_REDIRECTS = 10
TIMEOUT_SECONDS = 15.0
# Seconds before each further try; the list restarts after a try that received bytes.
PAUSES = (1.0, 2.0, 4.0)

_HEADERS = {"User-Agent": "cit", "Accept-Encoding": "identity"}
_UNREACHABLE = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")

Progress = Callable[[int, int | None], None]


class _BrokenOffError(Exception):
    """A failure that another try may overcome."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    max_bytes: int = MAX_BYTES,
    on_progress: Progress = lambda done, total: None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    pauses: tuple[float, ...] = PAUSES,
) -> StoredFile:
    """Fetch a file unless it exists; resume where an earlier call stopped.

    Args:
        url: The `https://` address, which may only redirect to others; `http://` on this machine.
        path: The path of the file; the server has no say in its name.
        sha256: The SHA-256 of the file, in hex; "" = the one that the first download recorded.
        max_bytes: The size above which a file is refused.
        on_progress: Called with the bytes so far and the total, which is None when unknown.
        timeout_seconds: The time limit to connect, and to wait for bytes.
        pauses: The seconds before each further try after a broken connection.

    Raises:
        ConfigError: The address is wrong, the server refuses it, or there is no network.
        DamagedError: The file is not the expected one.
        ResourceError: The connection keeps breaking, or the disk is too small.
    """
    _check_address(url)
    with writer_lock(path):
        stored = stored_file(path, sha256=sha256, url=url)
        if stored is not None:
            return stored
        with httpx2.Client(timeout=timeout_seconds, headers=_HEADERS) as client:
            transfer = _Transfer(url, path, client, max_bytes, on_progress)
            transfer.run(pauses)
        return transfer.finish(sha256)


@dataclass(frozen=True)
class _Version:
    """The version of a file, from the response headers of its first byte."""

    url: str
    etag: str = ""
    last_modified: str = ""
    bytes: int | None = None

    @property
    def validator(self) -> str:
        """The value for `If-Range` that identifies this version; "" = the server sent none."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def is_continued_by(self, headers: Mapping[str, str], start: int) -> bool:
        """Whether a partial response continues this version at byte `start`."""
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            return False
        return match[2] in ("*", str(self.bytes)) and headers.get("ETag", self.etag) == self.etag


class _Transfer:
    """The transfer of one file into `PATH.part`."""

    def __init__(
        self, url: str, path: Path, client: httpx2.Client, max_bytes: int, on_progress: Progress
    ) -> None:
        self._url = url
        self._path = path
        self._part = beside(path, ".part")
        self._version_path = beside(path, ".part.json")
        self._version = self._known_version()
        self._client = client
        self._max_bytes = max_bytes
        self._on_progress = on_progress
        self._by_hand = f"get the file elsewhere and put it at {path}"

    def run(self, pauses: tuple[float, ...]) -> None:
        """Fetch the missing bytes, over as many connections as necessary."""
        left, is_first = list(pauses), True
        while True:
            before = self._size()
            try:
                return self._fetch_rest(before)
            except (httpx2.TransportError, _BrokenOffError) as error:
                if is_first and isinstance(error, _UNREACHABLE):
                    raise ConfigError(
                        f"{self._url} cannot be reached: {error}; check the network, or "
                        f"{self._by_hand}"
                    ) from error
                if self._size() > before:
                    left = list(pauses)
                if not left:
                    raise ResourceError(
                        f"{self._url} broke off at {self._size():,} bytes: {error}; run the "
                        "command again to resume"
                    ) from error
            time.sleep(left.pop(0))
            is_first = False

    def finish(self, sha256: str) -> StoredFile:
        """Check the hash of the complete file and move it to its path."""
        actual, size = file_sha256(self._part), self._part.stat().st_size
        try:
            check_sha256(self._path, actual, sha256)
        except ConfigError:
            self._discard()  # resuming would end with the same bytes
            raise
        stored = StoredFile(
            path=self._path, url=self._url, bytes=size, sha256=actual, etag=self._version.etag
        )
        # The record first: a file without one counts as placed by hand.
        write_record(stored)
        with atomic_file(self._path) as temporary:
            self._part.replace(temporary)
        self._version_path.unlink(missing_ok=True)
        return stored

    def _discard(self) -> None:
        """Remove the partial file."""
        self._part.unlink(missing_ok=True)
        self._version_path.unlink(missing_ok=True)

    def _known_version(self) -> _Version:
        """The version of the file that `PATH.part` belongs to."""
        try:
            version = _Version(**read_json(self._version_path))
        except (DamagedError, TypeError):
            return _Version(self._url)
        return version if version.url == self._url else _Version(self._url)

    def _size(self) -> int:
        """The number of bytes that a transfer can resume from."""
        return self._part.stat().st_size if self._part.is_file() and self._version.validator else 0

    def _fetch_rest(self, start: int) -> None:
        if start and start == self._version.bytes:  # stopped before `finish`
            return
        # If the version has changed, the server sends the whole current file.
        headers = {"Range": f"bytes={start}-", "If-Range": self._version.validator} if start else {}
        with closing(self._response(headers)) as response:
            resumed = response.status_code == 206
            if resumed and not self._version.is_continued_by(response.headers, start):
                self._discard()
                raise _BrokenOffError(
                    "the file changed on the server; it is fetched from the start"
                )
            if not resumed:
                self._begin(response.headers)
            self._check_room()
            self._receive(response, append=resumed)
        total = self._version.bytes
        if total is not None and self._part.stat().st_size != total:
            raise _BrokenOffError(f"the connection was cut; {total:,} bytes were announced")

    def _response(self, headers: Mapping[str, str]) -> httpx2.Response:
        """The response after all redirects, whose addresses are checked like the first."""
        request = self._client.build_request("GET", self._url, headers=headers)
        for _ in range(MAX_REDIRECTS):
            response = self._client.send(request, stream=True)
            if response.next_request is None:
                break
            response.close()
            _check_address(str(response.next_request.url), from_url=str(request.url))
            request = response.next_request
        if response.is_success:
            return response
        response.close()
        status, reason = response.status_code, response.reason_phrase
        if status == 416:  # no such range: the partial file is not a prefix of the file
            self._discard()
        elif status < 500 and status != 429:
            raise ConfigError(f"{self._url} returned {status} {reason}; {self._by_hand}")
        raise _BrokenOffError(f"HTTP Error {status}: {reason}")

    def _begin(self, headers: Mapping[str, str]) -> None:
        """Start a new version of the file, from the headers of its response."""
        length = headers.get("Content-Length", "")
        self._version = _Version(
            self._url,
            headers.get("ETag", ""),
            headers.get("Last-Modified", ""),
            int(length) if length.isdigit() else None,
        )
        self._discard()
        write_json(self._version_path, asdict(self._version))

    def _receive(self, response: httpx2.Response, *, append: bool) -> None:
        total = self._version.bytes
        done = self._size() if append else 0
        with self._part.open("ab" if append else "wb") as file:
            self._on_progress(done, total)
            for chunk in response.iter_raw():
                done += len(chunk)
                self._check_size(done)
                file.write(chunk)
                self._on_progress(done, total)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            self._discard()
            raise ConfigError(
                f"{self._url} has {num_bytes:,} bytes or more; the limit is {self._max_bytes:,}"
            )

    def _check_room(self) -> None:
        if self._version.bytes is None:
            return
        self._check_size(self._version.bytes)
        missing = self._version.bytes - self._size()
        free = shutil.disk_usage(self._path.parent).free
        if missing > free:
            raise ResourceError(
                f"{self._path.parent} has {free / 1e6:,.0f} MB free and {self._path.name} needs "
                f"{missing / 1e6:,.0f} MB more; free some space, or choose another --out"
            )


def _check_address(url: str, *, from_url: str = "") -> None:
    """Refuse an address that is neither `https://` nor `http://` on this machine.

    Raises:
        ConfigError: The address is refused.
    """
    parts = urlsplit(url)
    ends = (parts, urlsplit(from_url or url))
    is_here = parts.scheme == "http" and all(end.hostname in _THIS_MACHINE for end in ends)
    if not is_here and not (parts.scheme == "https" and parts.hostname):
        source = f", to which {from_url} redirects," if from_url else ""
        raise ConfigError(f"{url}{source} is not an https:// address; nothing was fetched from it")
