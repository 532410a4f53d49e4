"""A pool in a store: its manifest, its files as the store lists them, and local copies of parts."""

import shutil
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.pool.format import MANIFEST_NAME, PoolManifest, manifest_of
from cit_curate.storage.durable import FileEntry, parse_json
from cit_curate.storage.remote import RemoteFile, below, list_files, read_range
from cit_curate.storage.remote_cache import copies_folder, hold, local_copy, private_folder

# Parts that are fetched in parallel: one connection does not use the full bandwidth.
FETCHES = 8

_MAX_MANIFEST_BYTES = 1 << 30


class RemotePool:
    """The files of a pool in a store.

    Attributes:
        url: The pool's folder.
        manifest: All of `pool.json`.
        folder: The target folder of `hold_all`; removed when the process ends.
    """

    def __init__(self, url: str) -> None:
        """Read the manifest, and compare the sizes of all files with what the store lists.

        Raises:
            ConfigError: There is no pool, or no permission to read it.
            DamagedError: A file is missing or has another size.
            ResourceError: The store cannot be reached.
        """
        self.url = url
        self.manifest = _manifest(url)
        self.listed = list_files(url)
        self._files = {
            entry.path: self._checked(entry)
            for entry in (
                *(part.file for part in self.manifest.parts),
                *self.manifest.reject_parts,
            )
        }
        self.folder = copies_folder() / "not-fetched"
        self._held = False

    def copy(self, entry: FileEntry, *, recheck: bool = False) -> Path:
        """The local copy of a file of the manifest, fetched if the cache has none."""
        return local_copy(self._files[entry.path], sha256=entry.sha256, recheck=recheck)

    def copies(self, entries: Sequence[FileEntry]) -> list[Path]:
        """The local copies of some files; missing ones are fetched in parallel."""
        if len(entries) == 1:
            return [self.copy(entries[0])]
        with ThreadPoolExecutor(min(FETCHES, max(len(entries), 1))) as threads:
            return list(threads.map(self.copy, entries))

    def hold_all(self, progress: Callable[[int, int], None]) -> None:
        """Put all Parquet files of pairs below `folder`, for SQL; the cache keeps them meanwhile.

        Args:
            progress: Callback with the bytes done and all bytes.
        """
        if self._held:
            return
        self.folder = private_folder("pool")
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        entries = [part.file for part in self.manifest.parts]
        total, done = sum(entry.bytes for entry in entries), 0

        def hold_one(entry: FileEntry) -> int:
            hold(self.copy(entry), self.folder / entry.path)
            return entry.bytes

        with ThreadPoolExecutor(FETCHES) as threads:
            for size in threads.map(hold_one, entries):
                done += size
                progress(done, total)
        self._held = True

    def _checked(self, entry: FileEntry) -> RemoteFile:
        if below(self.url, entry.path) is None:
            raise DamagedError(
                f"the manifest names {entry.path!r}, which lies outside {self.url}: it was changed"
            )
        file = self.listed.get(entry.path)
        if file is None:
            raise DamagedError(
                f"{self.url}/{entry.path} is missing; its manifest says {entry.bytes:,} bytes"
            )
        if file.bytes != entry.bytes:
            raise DamagedError(
                f"{file.url} has {file.bytes:,} bytes; its manifest says {entry.bytes:,}"
            )
        return file


def _manifest(url: str) -> PoolManifest:
    where = f"{url}/{MANIFEST_NAME}"
    try:
        data = read_range(where, 0, _MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(
            f"{url} is no pool: it has no {MANIFEST_NAME}; check the spelling, or put one there: "
            f"cit pool build SOURCE --out {url}"
        ) from error
    return manifest_of(parse_json(data, where), where)
