"""Files in object stores: the URLs that are allowed, and reads and writes with retries.

A URL names a store that fsspec has a driver for. Credentials, endpoints and regions are left to the
drivers (environment, ~/.aws, fsspec's configuration): nothing here takes, prints or stores a
secret. Local paths never come here.
"""

import errno
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cit_curate.errors import ConfigError, ResourceError, first_line

T = TypeVar("T")
logger = logging.getLogger(__name__)

PROTOCOLS = ("s3", "gs", "gcs", "az", "abfs", "hf", "memory")
_SHOWN_PROTOCOLS = "s3://, gs:// (gcs://), az:// (abfs://) and hf://"
_DRIVERS = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface-hub",
}
_EXTRA = ("s3fs", "gcsfs")

TRIES = 5
# A wait is drawn between half of this and all of it; it doubles after each try.
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 8.0

# A `Path` made from a URL keeps only one of its two slashes.
_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)
_OUT_OF_RANGE = re.compile(r"InvalidRange|range (is )?not satisfiable", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# In the class names of drivers' errors when credentials are missing or rejected.
_NO_CREDENTIALS = re.compile("auth|credential|profile|refresh|token", re.IGNORECASE)
_LOCAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})
# Drivers' names for the version of a file; the first one present is used.
_VERSIONS = (
    *("ETag", "etag", "generation", "md5Hash", "content_md5", "blob_id", "oid"),
    *("LastModified", "last_modified", "updated", "mtime", "created"),
)


class CutDownloadError(OSError):
    """The copy differs from the store's file; it is fetched again, as after a network error."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its store describes it.

    Attributes:
        url: The URL as normalised by `remote_url`.
        bytes: The size.
        version: Changes when the file is written again: an entity tag, else a time; "" = unknown.
    """

    url: str
    bytes: int
    version: str


def remote_url(path: str | Path) -> str | None:
    """The normalised URL in a text or a path; None for a local path.

    `Path("s3://b/k")` is `s3:/b/k`, which counts as a URL too, so that flags for paths take URLs.

    Raises:
        ConfigError: The protocol is not supported, or the URL contains a secret, a query or steps
            upwards.
    """
    text = str(path)
    match = _URL.fullmatch(text)
    if match is None and not ("::" in text and ":/" in text):
        return None
    protocol = "" if match is None else match["protocol"].lower()
    if protocol not in PROTOCOLS:
        if isinstance(path, Path) and path.parts and Path(path.parts[0]).exists():
            return None  # a folder whose name ends in a colon
        raise ConfigError(f"{shown_url(text)}: the supported URLs are {_SHOWN_PROTOCOLS}")
    assert match is not None
    segments = [segment for segment in match["rest"].split("/") if segment]
    url = f"{protocol}://{'/'.join(segments)}"
    if not segments:
        raise ConfigError(f"{text} names no bucket; give {protocol}://BUCKET/PATH")
    user = segments[0].rpartition("@")[0]
    if ":" in user:
        raise ConfigError(
            f"{shown_url(url)}: a URL must hold no secrets; put them where the driver finds them "
            "(for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
        )
    if "::" in url or "?" in url or "\\" in url or _CONTROL.search(url):
        raise ConfigError(
            f"{shown_url(url)!a}: a URL is PROTOCOL://BUCKET/PATH, without chains (::), queries "
            "(?), backslashes and control characters"
        )
    if any(segment in (".", "..") for segment in segments):
        raise ConfigError(f"{url}: a URL has no . or .. in it")
    return url


def shown_url(url: str) -> str:
    """A URL for messages, without user, password and query, which may hold tokens."""
    bare = url.partition("?")[0]
    return re.sub(r"(:/+)[^/]*:[^/]*@", r"\1", bare)


def refuse_remote_run(folder: str | Path) -> None:
    """Refuse a URL as the folder of a run.

    Raises:
        ConfigError: The folder is a URL.
    """
    if (url := remote_url(folder)) is not None:
        raise ConfigError(
            f"{url}: a run lives on a file system, because its commits need locks and renames that "
            "no object store has; give a folder on a disk (or a shared file system), and put its "
            "results into the store with cit export RUN URL"
        )


def below(url: str, relative: str) -> str | None:
    """The URL of a file below a folder; None for a path that leads out of it or is invalid."""
    segments = relative.split("/")
    if _CONTROL.search(relative) or "\\" in relative or "::" in relative:
        return None
    if any(segment in ("", ".", "..") for segment in segments):
        return None
    return f"{url}/{relative}"


def stat_file(url: str) -> RemoteFile | None:
    """The current state of a file in its store; None when there is no such file."""

    def stat() -> RemoteFile | None:
        fs, path = _driver(url)
        fs.invalidate_cache(fs._parent(path))
        info = fs.info(path)
        return _described(url, info) if info["type"] == "file" else None

    try:
        return _retried("looking at", url, stat)
    except FileNotFoundError:
        return None


def list_files(url: str) -> dict[str, RemoteFile]:
    """All files below a folder, by their paths relative to it; empty when there are none."""

    def find() -> dict[str, RemoteFile]:
        fs, path = _driver(url)
        fs.invalidate_cache()
        files = {}
        for name, info in fs.find(path, detail=True).items():
            relative = name.removeprefix(path).lstrip("/")
            if relative and (file_url := below(url, relative)) is not None:
                files[relative] = _described(file_url, info)
        return files

    try:
        return _retried("listing", url, find)
    except FileNotFoundError:
        return {}


def read_range(url: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes of a file from `start` up to `end`, fewer where the file ends before.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: The credentials do not allow reading it.
        ResourceError: The network failed at every try.
    """

    def read() -> bytes:
        fs, path = _driver(url)
        try:
            return bytes(fs.cat_file(path, start=start, end=end))
        except Exception as error:
            # S3 reports an error for a range of an empty file or past the end.
            if _OUT_OF_RANGE.search(str(error)):
                return b""
            raise

    return _retried("reading", url, read)


def fetch_file(file: RemoteFile, to: Path, check: Callable[[Path], None]) -> None:
    """Download a file; a copy that is cut, or that `check` refuses, is fetched again.

    Raises:
        CutDownloadError: No try brought the whole file.
        FileNotFoundError: There is no such file.
        ConfigError: The credentials do not allow reading it.
        ResourceError: The network failed at every try.
    """
    to.touch()  # an error of the local disk must not look like one of the store

    def copy() -> None:
        fs, path = _driver(file.url)
        fs.get_file(path, str(to))
        if (size := to.stat().st_size) != file.bytes:
            raise CutDownloadError(f"{size:,} of {file.bytes:,} bytes arrived")
        check(to)

    _retried("fetching", file.url, copy)


def put_file(local: Path, url: str) -> None:
    """Upload a local file, and check its size in the store.

    S3, GCS, Azure and the hub show a file only once its upload is complete.

    Raises:
        ConfigError: The credentials do not allow writing there, or there is no such bucket.
        ResourceError: The network failed at every try.
    """

    def copy() -> None:
        fs, path = _driver(url)
        fs.put_file(str(local), path)
        fs.invalidate_cache(fs._parent(path))
        if (size := int(fs.info(path)["size"])) != local.stat().st_size:
            raise CutDownloadError(f"the store has {size:,} of {local.stat().st_size:,} bytes")

    try:
        _retried("writing", url, copy)
    except FileNotFoundError as error:
        raise ConfigError(f"{url} cannot be written: there is no such bucket") from error
    except CutDownloadError as error:
        raise ResourceError(
            f"{url} was not written whole: {error}; run the command again"
        ) from error


def _driver(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        driver = _DRIVERS.get(protocol, "fsspec")
        what = "cit[remote]" if driver in _EXTRA else driver
        raise ConfigError(
            f"{url} needs the driver {driver}, which is not installed: pip install '{what}'"
        ) from error
    return fs, str(path)


def _described(url: str, info: dict[str, Any]) -> RemoteFile:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return RemoteFile(url, int(info["size"] or 0), version.strip('"'))


def _retried(doing: str, url: str, call: Callable[[], T]) -> T:
    """The result of `call`, retried after network errors with exponential backoff and jitter."""
    for number in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            if _is_refused(error):
                raise ConfigError(
                    f"{doing} {url}: not allowed ({_shown(error)}); check the credentials "
                    "that its driver uses, and what they may do"
                ) from error
            if not _is_transient(error):
                raise
            if number == TRIES:
                if isinstance(error, CutDownloadError):
                    raise
                raise ResourceError(
                    f"{doing} {url} failed at try {number} of {TRIES}: {_shown(error)}; check "
                    "the network and the store's endpoint, and run the command again"
                ) from error
            logger.info("%s %s: try %d failed: %s", doing, url, number, _shown(error))
            longest = min(FIRST_WAIT_SECONDS * 2 ** (number - 1), LONGEST_WAIT_SECONDS)
            time.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
    raise AssertionError("the last try returns or raises")


def _is_refused(error: Exception) -> bool:
    """Whether the store denies access, or its driver lacks credentials."""
    if isinstance(error, PermissionError) or _NO_CREDENTIALS.search(type(error).__name__):
        return True
    # HTTP clients' names for the status of a response.
    status = ("status", "status_code", "code")
    responses = (error, getattr(error, "response", None))
    return any(
        getattr(response, name, None) in (401, 403) for response in responses for name in status
    )


def _is_transient(error: Exception) -> bool:
    """Whether a retry may help: not for errors of the local disk, or raised by no driver."""
    final = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError, ConfigError)
    if isinstance(error, final) or getattr(error, "errno", None) in _LOCAL_ERRNOS:
        return False
    return isinstance(error, OSError) or type(error).__module__ != "builtins"


def _shown(error: Exception) -> str:
    line, name = shown_url(first_line(error)), type(error).__name__
    return line if line == name else f"{name}: {line}"
