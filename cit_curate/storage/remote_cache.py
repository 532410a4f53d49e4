"""Local copies of remote files, shared by processes, with a bound on their bytes.

A copy is named by URL, size and version, so a rewritten file has a new copy. A copy is whole or
absent. The least recently used ones are removed for new ones.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.storage.cache_folder import cache_folder
from cit_curate.storage.durable import TEMPORARY_PREFIX, atomic_file, file_sha256, own_prefix
from cit_curate.storage.lock import waiting_lock
from cit_curate.storage.remote import CutDownloadError, RemoteFile, fetch_file

DEFAULT_CACHE_BYTES = 20 << 30
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)
_NAME_LETTERS = 60
# The age at which leftovers of killed processes are removed; on a shared disk, pids mean nothing.
_LEFT_BEHIND_SECONDS = 86_400.0


def copies_folder() -> Path:
    """The folder of the copies."""
    return cache_folder() / "remote"


def cache_bytes() -> int:
    """The most bytes of all copies together: `$CIT_CACHE_BYTES`, such as 500G, else 20 GiB.

    Raises:
        ConfigError: The variable is not a size.
    """
    text = os.environ.get("CIT_CACHE_BYTES", "")
    if not text:
        return DEFAULT_CACHE_BYTES
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"CIT_CACHE_BYTES is {text!r}; give bytes, or a size such as 500G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def cache_name(file: RemoteFile) -> str:
    """The path of a file's copy in the cache: `ab/abcdef…-NAME`, with the last part of its URL."""
    key = "\0".join((file.url, str(file.bytes), file.version))
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", file.url.rpartition("/")[2])[-_NAME_LETTERS:]
    return f"{digest[:2]}/{digest[:40]}-{plain}"


def local_copy(file: RemoteFile, *, sha256: str = "", recheck: bool = False) -> Path:
    """The path of a remote file's local copy, fetched if missing.

    Another process may remove it to make room, so open it at once, or `hold` it.

    Args:
        file: The file, as its store describes it.
        sha256: The hash in a manifest, compared after a download; empty: none.
        recheck: Compare an existing copy too, and fetch it again when it differs.

    Raises:
        DamagedError: The store's file has another size or hash.
        ConfigError: The file is gone, or the credentials do not allow reading it.
        ResourceError: The network failed at every try.
    """
    folder = copies_folder()
    path = folder / "files" / cache_name(file)
    if not recheck and _is_there(path, file):
        return path
    # One of 256 locks, few enough to be left in place.
    with waiting_lock(folder / "locks" / path.name[:2]):
        # Another process may have fetched it in the meantime.
        if _is_there(path, file) and not (recheck and sha256 and file_sha256(path) != sha256):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        make_room(folder, file.bytes)

        def check(copy: Path) -> None:
            if sha256 and file_sha256(copy) != sha256:
                raise CutDownloadError("its SHA-256 differs from its manifest's")

        try:
            with atomic_file(path) as temporary:
                fetch_file(file, temporary, check)
        except CutDownloadError as error:
            raise DamagedError(f"{file.url} differs from what was expected: {error}") from error
        except FileNotFoundError as error:
            raise ConfigError(f"{file.url} is not there any more") from error
    return path


def hold(path: Path, link: Path) -> None:
    """Hard-link a copy to `link`, which stays when the cache drops the copy."""
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        link.hardlink_to(path)


def private_folder(name: str) -> Path:
    """Create a folder beside the copies, for links to them; its owner removes it.

    Folders that killed owners left are removed here after a day.
    """
    folder = copies_folder().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{own_prefix()}{name}-", dir=folder))


def make_room(folder: Path, new_bytes: int) -> None:
    """Remove the least recently used copies until `new_bytes` more fit under the bound."""
    copies = []
    for path in folder.glob("files/*/*"):
        with suppress(FileNotFoundError):
            state = path.stat()
            if path.name.startswith(TEMPORARY_PREFIX):
                if time.time() - state.st_mtime > _LEFT_BEHIND_SECONDS:
                    path.unlink()
                continue
            copies.append((state.st_mtime_ns, state.st_size, path))
    excess = sum(size for _, size, _ in copies) + new_bytes - cache_bytes()
    for used_ns, size, path in sorted(copies):
        if excess <= 0:
            return
        with suppress(FileNotFoundError):
            if path.stat().st_mtime_ns != used_ns:
                continue  # another process has just used it
            path.unlink()
            excess -= size


def _is_there(path: Path, file: RemoteFile) -> bool:
    try:
        is_whole = path.stat().st_size == file.bytes
        if is_whole:
            os.utime(path)
        return is_whole
    except FileNotFoundError:
        return False
