"""Files of one web address: resumed where a download broke off, and checked ever after.

    PATH               the file, whole
    PATH.part          what has arrived of it
    PATH.part.json     what the server said of it: a file that has changed since starts anew
    PATH.json          address, bytes, ETag, SHA-256; every later use compares the file with it

Neither torch.hub nor pooch resumes, and huggingface_hub only does so for its own hub.
"""

import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_curate.storage.durable import atomic_file, file_sha256, read_json, write_json
from cit_curate.storage.lock import writer_lock

__all__ = ["Downloaded", "download", "stored_file"]

MAX_BYTES = 16 * 10**9
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 15.0
# Seconds before each further try; a try that brought bytes starts them anew.
PAUSES = (1.0, 2.0, 4.0)

# A connection that broke; other errors of the system, such as a full disk, end the download.
_BROKEN = (ConnectionError, TimeoutError, ssl.SSLError)

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A file that is whole, and where it came from.

    Attributes:
        path: Where it lies.
        url: Its address; "" for a file that was put there by hand.
        bytes: Its size.
        sha256: Hex SHA-256 of its bytes, taken when it was complete.
        etag: The server's tag of this version; "" when it gave none.
    """

    path: Path
    url: str
    bytes: int
    sha256: str
    etag: str


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    max_bytes: int = MAX_BYTES,
    on_progress: Progress = lambda done, total: None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    pauses: tuple[float, ...] = PAUSES,
) -> Downloaded:
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
        transfer = _Transfer(url, path, max_bytes, on_progress, timeout_seconds)
        transfer.run(pauses)
        return _completed(transfer, sha256)


def stored_file(path: Path, *, sha256: str = "", url: str = "") -> Downloaded | None:
    """The file at `path` if it is there and still what it was; one put there by hand is recorded.

    Args:
        path: Of the file.
        sha256: What its bytes must hash to, in hex; "" = what was recorded.
        url: Where it should have come from; "" = anywhere.

    Raises:
        ConfigError: It is not what was asked for.
        DamagedError: It has changed, or came from another address.
    """
    if not path.is_file():
        return None
    found = file_sha256(path)
    record = _beside(path, ".json")
    if not record.is_file():
        _check_asked(path, found, sha256)
        stored = Downloaded(path=path, url="", bytes=path.stat().st_size, sha256=found, etag="")
        _write_record(stored)
        return stored
    value = read_json(record)
    if not isinstance(value, dict) or not value.keys() >= {"url", "sha256", "etag"}:
        raise DamagedError(f"{record} is damaged; delete it, and {path} is recorded anew")
    if found != str(value["sha256"]).lower():
        raise DamagedError(
            f"{path} has the SHA-256 {found}, and its record {record.name} says {value['sha256']}; "
            "delete it and fetch it again"
        )
    _check_asked(path, found, sha256)
    if url and value["url"] not in ("", url):
        raise DamagedError(f"{path} came from {value['url']}, not from {url}; move it away")
    return Downloaded(
        path=path,
        url=str(value["url"]),
        bytes=path.stat().st_size,
        sha256=found,
        etag=str(value["etag"]),
    )


class _Transfer:
    """One file on its way into `PATH.part`."""

    def __init__(
        self, url: str, path: Path, max_bytes: int, on_progress: Progress, timeout_seconds: float
    ) -> None:
        self.url = url
        self.path = path
        self.part = _beside(path, ".part")
        self.state_path = _beside(path, ".part.json")
        self.state = self._known_state()
        self._max_bytes = max_bytes
        self._on_progress = on_progress
        self._timeout = timeout_seconds
        self._was_answered = False
        self._opener = urllib.request.build_opener(_SafeRedirects())

    def run(self, pauses: tuple[float, ...]) -> None:
        """Fetch what is missing, over as many connections as it takes."""
        left = list(pauses)
        while True:
            before = self._size()
            try:
                return self._fetch_rest()
            except (http.client.HTTPException, OSError) as error:
                self._give_up_on(error)
                if self._size() > before:
                    left = list(pauses)
                if not left:
                    raise ResourceError(
                        f"{self.url} broke off at {self._size():,} bytes: {error}; run the command "
                        "again: it goes on from there"
                    ) from error
                time.sleep(left.pop(0))

    def _fetch_rest(self) -> None:
        start = self._size()
        if start and start == self.state["bytes"]:  # stopped before it got its name
            return
        request = urllib.request.Request(self.url, headers=self._headers(start))  # noqa: S310
        with closing(self._opener.open(request, timeout=self._timeout)) as response:
            self._was_answered = True
            resumed = response.status == 206 and self._goes_on(response.headers, start)
            if response.status == 206 and not resumed:
                self._forget()
                raise ConnectionError("the file changed on the server; it is fetched anew")
            if not resumed:
                self._begin(response.headers)
            self._check_room()
            self._receive(response, append=resumed)
        total = self.state["bytes"]
        if total is not None and self.part.stat().st_size != total:
            raise ConnectionError(f"the connection was cut; {total:,} bytes were announced")

    def _receive(self, response: Any, *, append: bool) -> None:
        total = self.state["bytes"]
        done = self._size() if append else 0
        with self.part.open("ab" if append else "wb") as stream:
            self._on_progress(done, total)
            while chunk := response.read1(CHUNK_BYTES):
                done += len(chunk)
                self._check_size(done)
                stream.write(chunk)
                self._on_progress(done, total)

    def _headers(self, start: int) -> dict[str, str]:
        headers = {"User-Agent": "cit", "Accept-Encoding": "identity"}
        if start:
            # Without a match the server sends the whole file as it is now.
            headers |= {"Range": f"bytes={start}-", "If-Range": self._validator()}
        return headers

    def _validator(self) -> str:
        """What tells this version of the file from another; "" when the server gave nothing."""
        etag = str(self.state["etag"])
        return etag if etag and not etag.startswith("W/") else str(self.state["last_modified"])

    def _known_state(self) -> dict[str, Any]:
        """What is known of the file that `PATH.part` is the start of."""
        empty = {"url": self.url, "etag": "", "last_modified": "", "bytes": None}
        try:
            value = read_json(self.state_path)
        except DamagedError:
            return empty
        whole = isinstance(value, dict) and value.keys() == empty.keys()
        return dict(value) if whole and value["url"] == self.url else empty

    def _size(self) -> int:
        """Bytes that have arrived and can be built on."""
        return self.part.stat().st_size if self.part.is_file() and self._validator() else 0

    def _begin(self, headers: Mapping[str, str]) -> None:
        """The first byte of a version of the file is about to arrive."""
        length = headers.get("Content-Length", "")
        self._forget()
        self.state = {
            "url": self.url,
            "etag": headers.get("ETag", ""),
            "last_modified": headers.get("Last-Modified", ""),
            "bytes": int(length) if length.isdigit() else None,
        }
        write_json(self.state_path, self.state)

    def _goes_on(self, headers: Mapping[str, str], start: int) -> bool:
        """Whether a partial answer continues what is there."""
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            return False
        same_size = found[2] == "*" or int(found[2]) == self.state["bytes"]
        return bool(same_size and headers.get("ETag", self.state["etag"]) == self.state["etag"])

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            self._forget()
            raise ConfigError(
                f"{self.url} has {num_bytes:,} bytes or more; the limit is {self._max_bytes:,}"
            )

    def _check_room(self) -> None:
        total = self.state["bytes"]
        if total is None:
            return
        self._check_size(total)
        missing, free = total - self._size(), shutil.disk_usage(self.path.parent).free
        if missing > free:
            raise ResourceError(
                f"{self.path.parent} has {free / 1e6:,.0f} MB free and {self.path.name} needs "
                f"{missing / 1e6:,.0f} MB more; free some space, or choose another --out"
            )

    def _give_up_on(self, error: Exception) -> None:
        """Raise for what a further try would not change."""
        by_hand = f"get the file elsewhere and put it at {self.path}"
        if isinstance(error, urllib.error.HTTPError):
            with closing(error):
                if error.code == 416:  # there is no such range: what we have is no start of it
                    self._forget()
                elif error.code < 500 and error.code != 429:
                    raise ConfigError(
                        f"{self.url} answers {error.code} {error.reason}; {by_hand}"
                    ) from error
        elif isinstance(error, urllib.error.URLError):
            if not self._was_answered:
                raise ConfigError(
                    f"{self.url} cannot be reached: {error.reason}; check the network, or {by_hand}"
                ) from error
        elif isinstance(error, OSError) and not isinstance(error, _BROKEN):
            raise error


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to where a first request may go too, and to this machine from it only."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_address(newurl, from_url=req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _completed(transfer: _Transfer, sha256: str) -> Downloaded:
    found = file_sha256(transfer.part)
    try:
        _check_asked(transfer.path, found, sha256)
    except ConfigError:
        # Going on from it would end in the same bytes.
        transfer.part.unlink()
        transfer.state_path.unlink(missing_ok=True)
        raise
    size = transfer.part.stat().st_size
    stored = Downloaded(
        path=transfer.path,
        url=transfer.url,
        bytes=size,
        sha256=found,
        etag=str(transfer.state["etag"]),
    )
    # The record first: a file without one would count as put there by hand.
    _write_record(stored)
    with atomic_file(transfer.path) as temporary:
        transfer.part.replace(temporary)
    transfer.state_path.unlink(missing_ok=True)
    return stored


def _write_record(stored: Downloaded) -> None:
    record = asdict(stored)
    del record["path"]
    write_json(_beside(stored.path, ".json"), record)


def _check_asked(path: Path, found: str, asked: str) -> None:
    """Compare a file's SHA-256 with the one that was asked for; "" = any.

    Raises:
        ConfigError: They differ.
    """
    if asked and found != asked.lower():
        raise ConfigError(
            f"{path} has the SHA-256 {found}, and what was asked for is {asked.lower()}: it is "
            "another file, or the hash is mistyped; look where it came from, and run cit pull "
            "again with the right --sha256"
        )


def _check_address(url: str, *, from_url: str = "") -> None:
    """Refuse what is not `https://`, but for this machine's own `http://`.

    Raises:
        ConfigError: With the reason.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if (
        parts.scheme == "http"
        and _is_this_machine(url)
        and (not from_url or _is_this_machine(from_url))
    ):
        return
    source = f", to which {from_url} leads," if from_url else ""
    raise ConfigError(f"{url}{source} is not an https:// address; nothing was fetched from it")


def _is_this_machine(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
