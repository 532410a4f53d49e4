"""Rows of numbers by key, in files that processes share: whole or absent, and bounded.

```
FOLDER/
  part-<hash>.npy       [rows, width], of one type
  part-<hash>.keys.npy  uint8 [rows, key bytes]
```
`<hash>` is the start of the SHA-256 of keys and rows, which is compared before a row is first
used. The keys are written last: a part exists once they do. Parts are only added and removed, never
changed, so that processes need no lock: one that lists a part another has just removed leaves it
out.
"""

import hashlib
import logging
import os
import threading
import time
import tokenize
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cit_curate.errors import DamagedError
from cit_curate.records import Bool, Int64, UInt8
from cit_curate.storage.durable import TEMPORARY_PREFIX, atomic_file

KEYS_SUFFIX = ".keys.npy"
# New rows are worth a part of their own from this size.
PART_BYTES = 32 << 20
# What a killed writer left is removed at this age; a living one may be on another machine.
_LEFT_BEHIND_SECONDS = 86_400.0
# Of the two files of a part, before their arrays.
_HEADER_BYTES = 2 * 128
# What NumPy raises for a damaged file: its header is parsed as Python.
_NOT_AN_ARRAY = (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError)

Rows = npt.NDArray[Any]
"""[rows, width], of one type."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Part:
    """A part on disk; `is_checked`: its content has been compared with its name."""

    path: Path
    values: Rows
    is_checked: bool


class RowCache:
    """The rows of one folder, for any number of threads; those on disk are memory-mapped.

    Attributes:
        folder: The folder, which may not exist yet.
        new_bytes: The bytes of the rows that wait for `flush`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key_bytes: int,
        max_bytes: int | None = None,
        removes_damaged: bool = False,
        keeps_used: bool = False,
    ) -> None:
        """Open the parts on disk.

        Args:
            folder: The folder of the rows. Its parent has one such folder for each model.
            key_bytes: The bytes of a key.
            max_bytes: The size limit of all folders in the parent together; the oldest parts are
                removed first. None = no limit.
            removes_damaged: Remove a damaged part with a warning, instead of raising. Its content
                is then compared before its first use, not now.
            keeps_used: Never remove a part that this cache has written or read from; where no other
                is left, new rows are dropped. So a scan of more rows than fit, repeated, finds as
                many as fit, and not none.

        Raises:
            DamagedError: A part is damaged.
        """
        self.folder = folder
        self.new_bytes = 0
        self._lock = threading.RLock()
        self._key_type = np.dtype(f"S{key_bytes}")
        self._max_bytes = max_bytes
        self._removes_damaged, self._keeps_used = removes_damaged, keeps_used
        self._new: dict[bytes, Rows] = {}
        self._parts: list[_Part | None] = []  # by number; None = removed
        # Of all rows on disk, in ascending order of the keys: the part's number and the row in it.
        self._keys = np.zeros(0, self._key_type)
        self._places = np.zeros((0, 2), np.int32)
        self._open_parts(sorted(folder.glob(f"part-*{KEYS_SUFFIX}")), are_checked=False)

    @property
    def stored_keys(self) -> UInt8:
        """The keys of all rows on disk: uint8 [rows, key bytes], in ascending order."""
        return self._keys.view(np.uint8).reshape(-1, self._key_type.itemsize)

    def knows(self, keys: Sequence[bytes]) -> Bool:
        """Whether there is a row for each key: bool [keys].

        Raises:
            DamagedError: A part is damaged, and the cache does not remove it.
        """
        with self._lock:
            found = self._find(keys)
            while unsound := self._unsound(np.unique(self._places[found[found >= 0], 0])):
                self._close(unsound)
                found = self._find(keys)
            is_new = np.fromiter((key in self._new for key in keys), np.bool_, len(keys))
            return is_new | (found >= 0)

    def rows(self, keys: Sequence[bytes]) -> Rows:
        """The rows of at least one key, all of which `knows` has found: [keys, width].

        Raises:
            KeyError: There is no row for a key.
        """
        with self._lock:
            found = self._find(keys)
            missing, stored = np.flatnonzero(found < 0), np.flatnonzero(found >= 0)
            blocks = [(np.array([at]), self._new[keys[at]][None]) for at in missing.tolist()]
            numbers, places = self._places[found[stored]].T
            for number in np.unique(numbers).tolist():
                part = self._parts[number]
                assert part is not None  # the places of a removed part are removed with it
                chosen = numbers == number
                blocks.append((stored[chosen], part.values[places[chosen]]))
        first = blocks[0][1]
        result = np.empty((len(keys), first.shape[1]), first.dtype)
        for at_rows, values in blocks:
            result[at_rows] = values
        return result

    def add(self, keys: Sequence[bytes], rows: Rows) -> None:
        """Add rows, [keys, width]; they are in memory until `flush`."""
        with self._lock:
            self._new.update(zip(keys, rows, strict=True))
            self.new_bytes += rows.nbytes

    def flush(self) -> None:
        """Write the new rows as a part, if there is room for it within the size limit."""
        with self._lock:
            if self._new:
                self._write(b"".join(self._new), np.stack(list(self._new.values())))
            self._new = {}
            self.new_bytes = 0

    def _write(self, joined_keys: bytes, values: Rows) -> None:
        keys = np.frombuffer(joined_keys, np.uint8).reshape(-1, self._key_type.itemsize)
        path = self.folder / _part_name(keys, values)
        if not self._make_room(_HEADER_BYTES + keys.nbytes + values.nbytes):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for target, array in ((values_path(path), values), (path, keys)):
            with atomic_file(target) as temporary, temporary.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
        self._open_parts([path], are_checked=True)

    def _find(self, keys: Sequence[bytes]) -> Int64:
        """The positions of keys in `_keys`; -1 = not on disk: int64 [keys]."""
        wanted = np.frombuffer(b"".join(keys), self._key_type)
        if not len(self._keys):
            return np.full(len(wanted), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[at] == wanted, at, -1)

    def _open_parts(self, paths: Sequence[Path], *, are_checked: bool) -> None:
        names, places = [np.zeros(0, self._key_type)], [np.zeros((0, 2), np.int32)]
        for path in paths:
            try:
                are_compared = not (are_checked or self._removes_damaged)
                keys, values = load_part(path) if are_compared else _mapped(path)
                if keys.shape[1] != self._key_type.itemsize or keys.dtype != np.uint8:
                    raise _damaged(path, f"has keys of {keys.dtype} {keys.shape}")
            except FileNotFoundError:
                continue  # another process that shares the folder has just removed it
            except DamagedError as error:
                self._discard(path, error)
                continue
            names.append(np.frombuffer(keys.tobytes(), self._key_type))
            place = np.zeros((len(keys), 2), np.int32)
            place[:, 0], place[:, 1] = len(self._parts), np.arange(len(keys))
            places.append(place)
            self._parts.append(_Part(path, values, are_checked or are_compared))
        keys = np.concatenate(names)
        order = np.argsort(keys, kind="stable")
        at = np.searchsorted(self._keys, keys[order])
        self._keys = np.insert(self._keys, at, keys[order])
        self._places = np.insert(self._places, at, np.concatenate(places)[order], axis=0)

    def _unsound(self, numbers: npt.NDArray[np.int32]) -> list[int]:
        """The parts among those about to be used that are damaged, or gone before they were read.

        Raises:
            DamagedError: See `knows`.
        """
        unsound = []
        for number in numbers.tolist():
            part = self._parts[number]
            assert part is not None
            if part.is_checked:
                continue
            try:
                load_part(part.path)
                part.is_checked = True
                with suppress(OSError):
                    os.utime(part.path)  # used: the last to be removed
            except FileNotFoundError:
                unsound.append(number)
            except DamagedError as error:
                unsound.append(number)
                self._discard(part.path, error)
        return unsound

    def _close(self, numbers: Sequence[int]) -> None:
        """Forget parts; a mapped file would keep its disk space."""
        for number in numbers:
            self._parts[number] = None
        stays = ~np.isin(self._places[:, 0], numbers)
        self._keys, self._places = self._keys[stays], self._places[stays]

    def _discard(self, path: Path, error: DamagedError) -> None:
        if not self._removes_damaged:
            raise error
        logger.warning("%s; it was removed", error)
        with suppress(OSError):
            remove_part(path)

    def _make_room(self, num_bytes: int) -> bool:
        """Remove the oldest parts until `num_bytes` more fit; False = they do not fit."""
        if self._max_bytes is None:
            return True
        if num_bytes > self._max_bytes:
            return False
        parts = _parts_by_age(self.folder.parent)
        excess = sum(size for _, _, size in parts) + num_bytes - self._max_bytes
        own = {part.path: (n, part) for n, part in enumerate(self._parts) if part is not None}
        removed = []
        for _, path, size in parts:
            if excess <= 0:
                break
            number, part = own.get(path, (-1, None))
            if part is not None and part.is_checked and self._keeps_used:
                continue
            remove_part(path)
            excess -= size
            removed.append(number)
        self._close([number for number in removed if number >= 0])
        return excess <= 0


def load_part(path: Path) -> tuple[UInt8, Rows]:
    """The keys in the file `path` of a part, and its rows, memory-mapped.

    Raises:
        DamagedError: One of the two files has changed since it was written.
        FileNotFoundError: One of the two files is missing.
    """
    keys, values = _mapped(path)
    if _part_name(keys, values) != path.name:
        raise _damaged(path, "has changed since it was written")
    return keys, values


def values_path(keys_path: Path) -> Path:
    """The file of the rows of a part, from the path of its keys."""
    return keys_path.with_name(keys_path.name.replace(".keys", ""))


def remove_part(keys_path: Path) -> None:
    """Remove both files of a part; the keys first, so that the part is gone at once."""
    keys_path.unlink(missing_ok=True)
    values_path(keys_path).unlink(missing_ok=True)


def _mapped(path: Path) -> tuple[UInt8, Rows]:
    try:
        keys = np.load(path, allow_pickle=False)
        values = np.load(values_path(path), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except _NOT_AN_ARRAY as error:
        raise _damaged(path, f"is damaged: {error}") from error
    if keys.ndim != 2 or values.ndim != 2 or len(keys) != len(values):
        raise _damaged(path, f"does not match {path.name}")
    return keys, values


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{values_path(path)} {what}; remove the part, and it will be rebuilt")


def _part_name(keys: UInt8, values: Rows) -> str:
    """The name of a part's keys file, which holds the hash of the part's content."""
    digest = hashlib.sha256(keys.tobytes())
    digest.update(np.ascontiguousarray(values).data)
    return f"part-{digest.hexdigest()[:16]}{KEYS_SUFFIX}"


def _parts_by_age(root: Path) -> list[tuple[int, Path, int]]:
    """When the parts of all folders were last used, their keys files and bytes, the oldest first.

    What killed writers left is removed: temporary files, and rows without keys.
    """
    parts = []
    for path in root.glob("*/part-*.npy"):
        with suppress(FileNotFoundError):  # removed by another process
            if path.name.endswith(KEYS_SUFFIX):
                stat, num_bytes = path.stat(), values_path(path).stat().st_size
                parts.append((stat.st_mtime_ns, path, stat.st_size + num_bytes))
            elif not path.with_name(f"{path.stem}{KEYS_SUFFIX}").exists():
                _remove_left_behind(path)
    for path in root.glob(f"*/{TEMPORARY_PREFIX}*"):
        with suppress(FileNotFoundError):
            _remove_left_behind(path)
    return sorted(parts)


def _remove_left_behind(path: Path) -> None:
    if time.time() - path.stat().st_mtime > _LEFT_BEHIND_SECONDS:
        path.unlink()
