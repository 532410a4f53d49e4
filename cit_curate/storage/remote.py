"""Files in object stores: which URLs are allowed, and reading and writing them with retries.

A URL names a store that fsspec has a driver for. Credentials, endpoints and regions are the
drivers' own business (environment, ~/.aws, fsspec's configuration): nothing here takes, prints or
stores a secret. Local paths never come here.
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
# The waits are drawn between half of this and all of it, doubled at each try.
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 8.0

# A path made from a URL has one slash of its two.
_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)
_OUT_OF_RANGE = re.compile(r"InvalidRange|range (is )?not satisfiable", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What the names of drivers' errors have in them where credentials are missing or do not serve.
_NO_CREDENTIALS = re.compile("auth|credential|profile|refresh|token", re.IGNORECASE)
_LOCAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})
# What a driver calls the version of a file; the first one there is taken.
_VERSIONS = (
    *("ETag", "etag", "generation", "md5Hash", "content_md5", "blob_id", "oid"),
    *("LastModified", "last_modified", "updated", "mtime", "created"),
)


class CutDownloadError(OSError):
    """What arrived is not what the store has: fetched again, like after any network error."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its store describes it.

    Attributes:
        url: Normalised, as `remote_url` gives it.
        bytes: Its size.
        version: Differs when the file was written again: an entity tag, else a time; "" unknown.
    """

    url: str
    bytes: int
    version: str


def remote_url(place: str | Path) -> str | None:
    """The normalised URL that a text or a path stands for; None for a local path.

    `Path("s3://b/k")` is `s3:/b/k`; that is a URL too, so that flags for paths take URLs.

    Raises:
        ConfigError: The protocol is not one of ours, or the URL has what no place has: secrets, a
            query, steps upwards.
    """
    text = str(place)
    found = _URL.fullmatch(text)
    if found is None and not ("::" in text and ":/" in text):
        return None
    protocol = "" if found is None else found["protocol"].lower()
    if protocol not in PROTOCOLS:
        if isinstance(place, Path) and place.parts and Path(place.parts[0]).exists():
            return None  # A folder whose name ends in a colon.
        raise ConfigError(f"{shown_url(text)}: the URLs that are read are {_SHOWN_PROTOCOLS}")
    assert found is not None
    segments = [segment for segment in found["rest"].split("/") if segment]
    url = f"{protocol}://{'/'.join(segments)}"
    if not segments:
        raise ConfigError(f"{text} names no bucket; give {protocol}://BUCKET/PATH")
    user = segments[0].rpartition("@")[0]
    if ":" in user:
        raise ConfigError(
            f"{shown_url(url)}: a URL holds no secrets; put them where the driver looks for them "
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
    """A URL for messages: without user, password and query, where tokens stand."""
    bare = url.partition("?")[0]
    return re.sub(r"(:/+)[^/]*:[^/]*@", r"\1", bare)


def refuse_remote_run(place: str | Path) -> None:
    """Stop when a run's folder is a URL.

    Raises:
        ConfigError: It is one.
    """
    if (url := remote_url(place)) is not None:
        raise ConfigError(
            f"{url}: a run lives on a file system, because its commits need locks and renames that "
            "no object store has; give a folder on a disk (or a shared file system), and put what "
            "came of it into the store with cit export RUN URL"
        )


def below(url: str, relative: str) -> str | None:
    """The URL of a file below a folder's; None when the name leads out of it or is no name."""
    segments = relative.split("/")
    if _CONTROL.search(relative) or "\\" in relative or "::" in relative:
        return None
    if any(segment in ("", ".", "..") for segment in segments):
        return None
    return f"{url}/{relative}"


def stat_file(url: str) -> RemoteFile | None:
    """A file as the store has it now; None when there is none."""

    def ask() -> RemoteFile | None:
        fs, path = _driver(url)
        fs.invalidate_cache(fs._parent(path))
        info = fs.info(path)
        return _described(url, info) if info["type"] == "file" else None

    try:
        return _retried("looking at", url, ask)
    except FileNotFoundError:
        return None


def list_files(url: str) -> dict[str, RemoteFile]:
    """All files below a folder, by their paths relative to it; empty when there is none."""

    def ask() -> dict[str, RemoteFile]:
        fs, path = _driver(url)
        fs.invalidate_cache()
        files = {}
        for name, info in fs.find(path, detail=True).items():
            relative = name.removeprefix(path).lstrip("/")
            if relative and (place := below(url, relative)) is not None:
                files[relative] = _described(place, info)
        return files

    try:
        return _retried("listing", url, ask)
    except FileNotFoundError:
        return {}


def read_range(url: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes of a file from `start` to before `end`, fewer where the file ends.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: The store lets nobody with these credentials read it.
        ResourceError: The network stays away.
    """

    def ask() -> bytes:
        fs, path = _driver(url)
        try:
            return bytes(fs.cat_file(path, start=start, end=end))
        except Exception as error:
            # A range of an empty file, or behind the end, is an error in S3.
            if _OUT_OF_RANGE.search(str(error)):
                return b""
            raise

    return _retried("reading", url, ask)


def fetch_file(file: RemoteFile, to: Path, check: Callable[[Path], None]) -> None:
    """Copy a file to a local path; a copy that is cut or that `check` refuses is fetched again.

    Raises:
        CutDownloadError: It never came whole.
        FileNotFoundError: There is no such file.
        ConfigError: The store lets nobody with these credentials read it.
        ResourceError: The network stays away.
    """
    to.touch()  # A disk that refuses is not taken for the store.

    def copy() -> None:
        fs, path = _driver(file.url)
        fs.get_file(path, str(to))
        if (size := to.stat().st_size) != file.bytes:
            raise CutDownloadError(f"{size:,} of {file.bytes:,} bytes arrived")
        check(to)

    _retried("fetching", file.url, copy)


def put_file(local: Path, url: str) -> None:
    """Copy a local file into a store, and check its size there.

    Stores show a file when it is whole: S3, GCS, Azure and the hub at the end of an upload.

    Raises:
        ConfigError: The store lets nobody with these credentials write there, or has no bucket.
        ResourceError: The network stays away.
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
    """The file system of fsspec for a URL, and the path in it."""
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
    """What `call` gives; network errors are tried again after a wait that doubles, with jitter."""
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
    """Whether the store refuses whoever asks, or its driver lacks the credentials to ask with."""
    if isinstance(error, PermissionError) or _NO_CREDENTIALS.search(type(error).__name__):
        return True
    # The names that HTTP clients give to the status of an answer.
    status = ("status", "status_code", "code")
    answers = (error, getattr(error, "response", None))
    return any(getattr(answer, name, None) in (401, 403) for answer in answers for name in status)


def _is_transient(error: Exception) -> bool:
    """Whether another try may help: not with a local disk, nor with what no driver has raised."""
    final = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError, ConfigError)
    if isinstance(error, final) or getattr(error, "errno", None) in _LOCAL_ERRNOS:
        return False
    return isinstance(error, OSError) or type(error).__module__ != "builtins"


def _shown(error: Exception) -> str:
    line, name = shown_url(first_line(error)), type(error).__name__
    return line if line == name else f"{name}: {line}"
