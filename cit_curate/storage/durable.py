"""Files that are whole or absent, and manifests that show whether they have changed.

Every writer of the project goes through `atomic_file` or `atomic_folder`: a temporary name in the
same folder, fsync, rename, fsync of the folder. A kill at any moment leaves at most a file named
`.tmp-PID-NAME`, which no reader opens and `sweep_temporary` removes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from glob import escape
from pathlib import Path
from typing import Any

from cit_curate.errors import DamagedError
from cit_curate.storage.fail_points import reach

TEMPORARY_PREFIX = ".tmp-"
_SEAL = "json_sha256"
_SEAL_START = f',\n "{_SEAL}": "'.encode()


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest: `path` is relative to the folder of the manifest's owner."""

    path: str
    rows: int
    bytes: int
    sha256: str


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there becomes `path` when the block succeeds."""
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
    """Yield a temporary folder that becomes `path` when the block succeeds.

    Args:
        path: The folder, which is absent unless `aside` is given.
        aside: The path to which an old folder at `path` is moved, once the new one is on the disk.
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
    """Point the symbolic link `link` at `target`, a name in the same folder, atomically."""
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


def check_room(folder: Path) -> None:
    """Write a small file and remove it, to detect a full or read-only disk before any work is done.

    Raises:
        OSError: The file cannot be written.
    """
    path = _temporary(folder / "room")
    reach(path, "start")
    try:
        path.write_bytes(bytes(4096))
        sync(path)
    finally:
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder: its name disappears at once, though deleting its files may take a while."""
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.rename(temporary)
        shutil.rmtree(temporary)


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """As `write_json`, with a seal as the last member: `json_sha256`, of all bytes before it."""
    head = json_text(value).removesuffix("\n}\n").encode()
    with atomic_file(path) as temporary:
        temporary.write_bytes(_sealed(head))


def read_json(path: Path) -> Any:
    """The value of a JSON file. A seal is checked, and left out of the value.

    Raises:
        DamagedError: The file is missing, is not JSON, or has changed since it was sealed.
    """
    try:
        return parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None


def parse_json(content: bytes, name: str) -> Any:
    """As `read_json`, from a file's bytes; `name` is for error messages."""
    try:
        value = json.loads(content.decode())
    except ValueError as error:
        raise _damaged(name, f"is damaged: {error}") from error
    if isinstance(value, dict) and value.pop(_SEAL, None) is not None:
        head = content.rpartition(_SEAL_START)[0]
        if content != _sealed(head):
            raise _damaged(name, "has changed since it was written: its SHA-256 differs")
    return value


def _sealed(head: bytes) -> bytes:
    return b"".join((head, _SEAL_START, hashlib.sha256(head).hexdigest().encode(), b'"\n}\n'))


def append_sha256(path: Path) -> None:
    """Append the SHA-256 of a file's bytes to it, for files that no manifest lists."""
    digest = bytes.fromhex(file_sha256(path))
    with path.open("ab") as stream:
        stream.write(digest)


def read_with_sha256(path: Path) -> bytes:
    """The bytes of a file without the SHA-256 that `append_sha256` appended.

    Raises:
        DamagedError: The file is missing, cut or changed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    body = content[:-32]
    if hashlib.sha256(body).digest() != content[-32:]:
        raise _damaged(path, "is cut or has changed since it was written")
    return body


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sums_path(path: Path) -> Path:
    """The path of the SHA-256 beside a published file, in the format of `sha256sum -c`."""
    return path.with_name(f"{path.name}.sha256")


def write_sums(path: Path) -> None:
    """Write the SHA-256 of a file beside it."""
    with atomic_file(sums_path(path)) as temporary:
        temporary.write_text(f"{file_sha256(path)}  {path.name}\n", encoding="utf-8")


def check_sums(path: Path) -> None:
    """Compare a file with the SHA-256 beside it, if there is one.

    Raises:
        DamagedError: The file differs.
    """
    beside = sums_path(path)
    if beside.is_file() and beside.read_bytes() != f"{file_sha256(path)}  {path.name}\n".encode():
        what = f"has changed since {beside} was written; if on purpose, remove {beside}"
        raise _damaged(path, what)


def describe_file(path: Path, root: Path, *, rows: int) -> FileEntry:
    """The manifest entry of a file that has just been written."""
    relative = path.relative_to(root).as_posix()
    return FileEntry(relative, rows, path.stat().st_size, file_sha256(path))


def file_entry(value: Any, name: str) -> FileEntry:
    """The manifest entry in parsed JSON; `name` is for error messages.

    Raises:
        DamagedError: The value is not a manifest entry.
    """
    types = {field.name: field.type for field in fields(FileEntry)}
    if not isinstance(value, dict) or {k: type(v) for k, v in value.items()} != types:
        raise _damaged(name, f"is damaged: {value!r} does not describe a file")
    return FileEntry(**value)


def write_listing(path: Path, files: Iterable[Path]) -> None:
    """Write a sealed JSON file that lists files of its folder, with their sizes and hashes."""
    entries = [asdict(describe_file(file, path.parent, rows=0)) for file in files]
    write_sealed(path, {"files": entries})


def read_listing(path: Path) -> list[FileEntry]:
    """The entries of a file from `write_listing`, or of a plain JSON list.

    Raises:
        DamagedError: The listing is missing or damaged.
    """
    value = read_json(path)
    entries = value.pop("files", None) if isinstance(value, dict) else value
    if not isinstance(entries, list) or (isinstance(value, dict) and value):
        raise _damaged(path, "is damaged: it lists no files")
    return [file_entry(entry, str(path)) for entry in entries]


def check_listing(path: Path) -> None:
    """Check every file of a listing against its SHA-256.

    Raises:
        DamagedError: A file, or the listing, is missing or has changed.
    """
    for entry in read_listing(path):
        check_file(path.parent, entry)


def check_file(root: Path, entry: FileEntry, *, full: bool = True) -> Path:
    """The path of a manifest's file, checked against its entry.

    Args:
        root: The folder of the manifest.
        entry: The file's entry.
        full: Also compare the SHA-256. Otherwise only the size is compared, and the magic bytes at
            both ends of a Parquet file.

    Raises:
        DamagedError: The file is missing, or its size or hash differs from the manifest.
    """
    path = root / entry.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise DamagedError(f"the manifest names {entry.path!r}, which lies outside {root}")
    if not path.is_file():
        raise _damaged(path, f"is missing; its manifest says {entry.bytes:,} bytes")
    size = path.stat().st_size
    if size != entry.bytes:
        raise _damaged(path, f"has {size:,} bytes; its manifest says {entry.bytes:,}")
    if path.suffix == ".parquet" and not _has_parquet_ends(path):
        raise _damaged(path, "does not begin and end as a Parquet file")
    if full and file_sha256(path) != entry.sha256:
        raise _damaged(path, "has changed since it was written: its SHA-256 differs")
    return path


def _has_parquet_ends(path: Path) -> bool:
    with path.open("rb") as stream:
        first = stream.read(4)
        stream.seek(-4, os.SEEK_END)
        return first == stream.read(4) == b"PAR1"


def leftovers(folder: Path, *, below: bool = True, name: str | None = None) -> list[Path]:
    """Temporary files and folders of killed writers; those of living writers are left out.

    Args:
        folder: The folder to search.
        below: Search its sub-folders, too; not for a folder that is not the project's own.
        name: Only those of a file or folder with this name.
    """
    pattern = f"{TEMPORARY_PREFIX}*" + ("" if name is None else f"-{escape(name)}")
    paths = sorted(folder.rglob(pattern) if below else folder.glob(pattern))
    return [path for path in paths if not _has_living_owner(path)]


def sweep_temporary(folder: Path, *, below: bool = True, name: str | None = None) -> list[Path]:
    """Remove the `leftovers` and return their paths."""
    removed = leftovers(folder, below=below, name=name)
    for path in removed:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return removed


def _has_living_owner(path: Path) -> bool:
    owner = path.name.removeprefix(TEMPORARY_PREFIX).split("-", 1)[0]
    return owner.isdigit() and int(owner) != os.getpid() and _is_running(int(owner))


def _damaged(file: Path | str, what: str) -> DamagedError:
    return DamagedError(f"{file} {what}", file=str(file))


def own_prefix() -> str:
    """The prefix of the names of this process's temporary files and folders."""
    return f"{TEMPORARY_PREFIX}{os.getpid()}-"


def _temporary(path: Path) -> Path:
    return path.with_name(f"{own_prefix()}{path.name}")


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
