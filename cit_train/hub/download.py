"""Files of one web address, resumed where a download broke off, also by a kill.

    PATH               the file, whole, and its record: see `stored_file`
    PATH.part          what has arrived of it
    PATH.part.json     what the server said of it: a file that has changed since starts anew

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
from cit_train.hub.stored_file import StoredFile, beside, check_asked, stored_file, write_record

__all__ = ["Progress", "download"]

MAX_BYTES = 16 * 10**9
MAX_REDIRECTS = 10
TIMEOUT_SECONDS = 15.0
# Seconds before each further try; a try that brought bytes starts them anew.
PAUSES = (1.0, 2.0, 4.0)

_HEADERS = {"User-Agent": "cit", "Accept-Encoding": "identity"}
_UNREACHABLE = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")

Progress = Callable[[int, int | None], None]


class _BrokenOffError(Exception):
    """An answer that another try may better."""


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
    """Fetch a file, unless it is there; go on where an earlier call was stopped.

    Args:
        url: `https://`, to which redirects are held too; `http://` on this machine only.
        path: Of the file; its name is not the server's to choose.
        sha256: What its bytes must hash to, in hex; "" = what the first download recorded.
        max_bytes: A larger file is refused.
        on_progress: Called with the bytes that are there and the total, None when unknown.
        timeout_seconds: For a connection, and for silence.
        pauses: Seconds before each further try after a broken connection.

    Raises:
        ConfigError: The address, or what the server says to it, is wrong; or there is no network.
        DamagedError: The file is not the one that was expected.
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
    """What the server said of a file when its first byte arrived."""

    url: str
    etag: str = ""
    last_modified: str = ""
    bytes: int | None = None

    @property
    def validator(self) -> str:
        """What tells this version of the file from another; "" when the server gave nothing."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified

    def goes_on(self, headers: Mapping[str, str], start: int) -> bool:
        """Whether a partial answer continues this version from a byte on."""
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            return False
        return found[2] in ("*", str(self.bytes)) and headers.get("ETag", self.etag) == self.etag


class _Transfer:
    """One file on its way into `PATH.part`."""

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
        """Fetch what is missing, over as many connections as it takes."""
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
                        "command again: it goes on from there"
                    ) from error
            time.sleep(left.pop(0))
            is_first = False

    def finish(self, sha256: str) -> StoredFile:
        """Give the file its name, once it has the hash that was asked for."""
        found, size = file_sha256(self._part), self._part.stat().st_size
        try:
            check_asked(self._path, found, sha256)
        except ConfigError:
            self._forget()  # going on from it would end in the same bytes
            raise
        stored = StoredFile(
            path=self._path, url=self._url, bytes=size, sha256=found, etag=self._version.etag
        )
        # The record first: a file without one would count as put there by hand.
        write_record(stored)
        with atomic_file(self._path) as temporary:
            self._part.replace(temporary)
        self._version_path.unlink(missing_ok=True)
        return stored

    def _forget(self) -> None:
        """Remove what has arrived."""
        self._part.unlink(missing_ok=True)
        self._version_path.unlink(missing_ok=True)

    def _known_version(self) -> _Version:
        """The version of the file that `PATH.part` is the start of."""
        try:
            version = _Version(**read_json(self._version_path))
        except (DamagedError, TypeError):
            return _Version(self._url)
        return version if version.url == self._url else _Version(self._url)

    def _size(self) -> int:
        """Bytes that have arrived and can be built on."""
        return self._part.stat().st_size if self._part.is_file() and self._version.validator else 0

    def _fetch_rest(self, start: int) -> None:
        if start and start == self._version.bytes:  # stopped before it got its name
            return
        # Without a match the server sends the whole file as it is now.
        wanted = {"Range": f"bytes={start}-", "If-Range": self._version.validator} if start else {}
        with closing(self._answer(wanted)) as response:
            resumed = response.status_code == 206
            if resumed and not self._version.goes_on(response.headers, start):
                self._forget()
                raise _BrokenOffError("the file changed on the server; it is fetched anew")
            if not resumed:
                self._begin(response.headers)
            self._check_room()
            self._receive(response, append=resumed)
        total = self._version.bytes
        if total is not None and self._part.stat().st_size != total:
            raise _BrokenOffError(f"the connection was cut; {total:,} bytes were announced")

    def _answer(self, headers: Mapping[str, str]) -> httpx2.Response:
        """The answer behind all redirects, of which each may lead where a first request may go."""
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
        if status == 416:  # there is no such range: what we have is no start of it
            self._forget()
        elif status < 500 and status != 429:
            raise ConfigError(f"{self._url} answers {status} {reason}; {self._by_hand}")
        raise _BrokenOffError(f"HTTP Error {status}: {reason}")

    def _begin(self, headers: Mapping[str, str]) -> None:
        """The first byte of a version of the file is about to arrive."""
        length = headers.get("Content-Length", "")
        self._version = _Version(
            self._url,
            headers.get("ETag", ""),
            headers.get("Last-Modified", ""),
            int(length) if length.isdigit() else None,
        )
        self._forget()
        write_json(self._version_path, asdict(self._version))

    def _receive(self, response: httpx2.Response, *, append: bool) -> None:
        total = self._version.bytes
        done = self._size() if append else 0
        with self._part.open("ab" if append else "wb") as stream:
            self._on_progress(done, total)
            for chunk in response.iter_raw():
                done += len(chunk)
                self._check_size(done)
                stream.write(chunk)
                self._on_progress(done, total)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            self._forget()
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
    """Refuse what is not `https://`, but for this machine's own `http://`.

    Raises:
        ConfigError: With the reason.
    """
    parts = urlsplit(url)
    ends = (parts, urlsplit(from_url or url))
    is_here = parts.scheme == "http" and all(end.hostname in _THIS_MACHINE for end in ends)
    if not is_here and not (parts.scheme == "https" and parts.hostname):
        source = f", to which {from_url} leads," if from_url else ""
        raise ConfigError(f"{url}{source} is not an https:// address; nothing was fetched from it")
