"""Files that are whole or absent, and manifests that tell when they changed.

Every writer of the project goes through `atomic_file` or `atomic_folder`: a temporary name in the
same folder, fsync, rename, fsync of the folder. A kill at any moment leaves at most a file named
`.tmp-PID-NAME`, which no reader opens and `sweep_temporary` removes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from indexes.errors import DamagedError
from indexes.fail_points import reach

TEMPORARY_PREFIX = ".tmp-"


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest: `path` is relative to the folder of the manifest's owner."""

    path: str
    rows: int
    bytes: int
    sha256: str


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path; what was written there becomes `path` when the block ends well."""
    temporary = _temporary(path)
    reach(path, "start")
    try:
        yield temporary
        reach(path, "written")
        sync(temporary)
        reach(path, "synced")
        temporary.replace(path)
        reach(path, "renamed")
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well.

    Args:
        path: The folder, which is absent unless `aside` is given.
        aside: Where what is at `path` goes, once the new folder is safe on the disk.
    """
    temporary = _temporary(path)
    reach(path, "start")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        reach(path, "written")
        for entry in sorted(temporary.rglob("*")):
            sync(entry)
        sync(temporary)
        if aside is not None and path.exists():
            path.rename(aside)
        reach(path, "synced")
        temporary.rename(path)
        reach(path, "renamed")
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_link(link: Path, target: str) -> None:
    """Make `link` lead to `target`, a name beside it, instead of where it leads now."""
    temporary = _temporary(link)
    reach(link, "start")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target)
        reach(link, "written")
        sync(link.parent)
        reach(link, "synced")
        temporary.replace(link)
        reach(link, "renamed")
        sync(link.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DamagedError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_file(path: Path, root: Path, *, rows: int) -> FileEntry:
    """The manifest entry of a file that has just been written."""
    relative = path.relative_to(root).as_posix()
    return FileEntry(relative, rows, path.stat().st_size, file_sha256(path))


def check_file(root: Path, entry: FileEntry, *, full: bool = True) -> Path:
    """The path of a manifest's file, once it matches: size always, SHA-256 when `full`.

    Raises:
        DamagedError: The file is missing, or its size or hash differs from the manifest.
    """
    path = root / entry.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise DamagedError(f"the manifest names {entry.path!r}, which lies outside {root}")
    if not path.is_file():
        raise DamagedError(f"{path} is missing; its manifest says {entry.bytes:,} bytes")
    size = path.stat().st_size
    if size != entry.bytes:
        raise DamagedError(f"{path} has {size:,} bytes; its manifest says {entry.bytes:,}")
    if full and file_sha256(path) != entry.sha256:
        raise DamagedError(f"{path} has changed since it was written: its SHA-256 differs")
    return path


def sweep_temporary(folder: Path, *, below: bool = True, name: str | None = None) -> list[Path]:
    """Remove what killed writers left in `folder`; a living writer's files stay.

    Args:
        folder: Where to look.
        below: Look into its sub-folders, too: not where a folder is anybody's.
        name: Only what was to become a file or folder of this name.

    Returns:
        The paths that were removed.
    """
    removed = []
    pattern = f"{TEMPORARY_PREFIX}*" + ("" if name is None else f"-{escape(name)}")
    for path in sorted(folder.rglob(pattern) if below else folder.glob(pattern)):
        owner = path.name.removeprefix(TEMPORARY_PREFIX).split("-", 1)[0]
        if owner.isdigit() and _is_running(int(owner)) and int(owner) != os.getpid():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
