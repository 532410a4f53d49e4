"""The path of a new pool: whether it is free, the builder's lock, and the files beside it."""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import duckdb

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_curate.pool.build.reading import BLOCK_BATCHES
from cit_curate.pool.build.source_entries import Asked, differences
from cit_curate.pool.catalog import rebuild_catalog
from cit_curate.pool.format import (
    CATALOG_NAME,
    MANIFEST_NAME,
    PoolManifest,
    SourceEntry,
    read_manifest,
)
from cit_curate.sources.source import Source
from cit_curate.storage.durable import check_file, read_json, sweep_temporary, write_json
from cit_curate.storage.lock import writer_lock
from cit_curate.storage.replace_folder import settle
from cit_curate.storage.sql import DISK_FULL_WORDS, STAGING_MEMORY

_log = logging.getLogger(__name__)

STAGING_PREFIX = ".staging-"
STAGING_VERSION = 5
_KEY_NAME = "key.json"

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Of these sources, captions and paths are copied, but no images.
_WITH_IMAGES = ("folder", "webdataset")
# About the size of an empty pool: DuckDB's files have a minimum size.
_LEAST_BYTES = 1 << 20


def staging_folder(out: Path) -> Path:
    """The folder of what a build of the pool `out` has read, until the pool is complete."""
    return out.with_name(f"{STAGING_PREFIX}{out.name}")


def rejects_path(out: Path) -> Path:
    """The list of rejects that a build of the pool `out` leaves if there are too many."""
    return out.with_name(f"{out.name}.rejects.parquet")


@contextmanager
def builder_lock(out: Path, entries: Sequence[SourceEntry]) -> Iterator[None]:
    """Hold the lock of the only builder of the pool `out` while the block runs.

    Raises:
        ResourceError: Another builder is running, or the block ran out of disk or memory.
    """
    try:
        with writer_lock(out):
            yield
    except (OSError, duckdb.Error) as error:
        explained = _explained(error, out, entries)
        if explained is None:
            raise
        raise explained from error


def check_free(out: Path, request: Asked, *, overwrite: bool) -> PoolManifest | None:
    """Raise unless the requested pool may be built at `out`; the caller is its only writer.

    Returns:
        The manifest of that very pool if it exists and lacks only its catalog, as after a kill:
        `finish_pool` is all that is left to do.

    Raises:
        ConfigError: `out` is in use; the message lists the differences from the request.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise ConfigError(f"{out} is a file; --out names the folder of the new pool")
    if not any(out.iterdir()):
        return None
    if not (out / MANIFEST_NAME).exists() and not (out / "pairs").is_dir():
        raise ConfigError(f"{out} is not empty and holds no pool; choose another --out")
    for source in request.sources:
        if Path(source.path).is_relative_to(out.resolve()):
            raise ConfigError(
                f"the source {source.path} lies inside the pool {out} it would replace"
            )
    if overwrite:
        return None
    has_catalog = (out / CATALOG_NAME).is_file()
    try:
        manifest = read_manifest(out)
        for entry in (*(part.file for part in manifest.parts), *manifest.reject_parts):
            check_file(out, entry, full=False)
        changes = differences(manifest, request)
        if not changes and not has_catalog:
            return manifest
    except DamagedError as error:
        changes = [str(error)]
    state = "; ".join(changes) if changes else "its sources have not changed since"
    if not has_catalog:
        state += f"; its catalog is missing; write it with: cit pool repair {out}"
    raise ConfigError(f"{out} holds a pool already ({state}); --overwrite builds it again")


def finish_pool(out: Path, manifest: PoolManifest) -> None:
    """Remove what lies beside a complete pool; then write its catalog, last of all."""
    settle(out)
    sweep_temporary(out.parent, below=False, name=rejects_path(out).name)
    rejects_path(out).unlink(missing_ok=True)
    if staging_folder(out).is_dir():
        shutil.rmtree(staging_folder(out))
    rebuild_catalog(out, manifest)


def open_staging(
    staging: Path,
    sources: Sequence[Source],
    entries: Sequence[SourceEntry],
    settings: Mapping[str, object],
) -> list[Path]:
    """The folder of blocks for each source; those of other sources or settings are removed.

    Args:
        staging: A folder beside the pool.
        sources: The sources.
        entries: The current state of the sources.
        settings: Other settings that blocks depend on, by user-facing name: JSON values.
    """
    version = {"staging version": [STAGING_VERSION, BLOCK_BATCHES]}
    keys = [{**version, "entry": asdict(entry), **settings} for entry in entries]
    digests = [hashlib.sha256(json.dumps(key, sort_keys=True).encode()) for key in keys]
    folders = [staging / digest.hexdigest()[:32] for digest in digests]
    described = {
        "--metadata" if source.yfcc else f"the source {entry.path}": asdict(entry)
        for source, entry in zip(sources, entries, strict=True)
    }
    keep_in_staging(staging, folders, {**version, **described, **settings})
    return folders


def keep_in_staging(staging: Path, keep: Sequence[Path], key: Mapping[str, object]) -> None:
    """Remove all but some folders from a staging folder, and log why anything was removed.

    Args:
        staging: The folder beside the pool.
        keep: Paths to keep; they need not exist yet.
        key: All settings that these depend on, by user-facing name: JSON values.
    """
    staging.mkdir(parents=True, exist_ok=True)
    sweep_temporary(staging)
    others = [path for path in staging.iterdir() if path not in keep and path.name != _KEY_NAME]
    if others:
        try:
            before = read_json(staging / _KEY_NAME)
            names = [name for name in {**before, **key} if before.get(name) != key.get(name)]
            why = f"{', '.join(names)} changed"
        except DamagedError as error:
            why = str(error)
        _log.warning("%s: reading starts over, since %s", staging, why)
        for path in others:
            shutil.rmtree(path)
    write_json(staging / _KEY_NAME, key)


def _explained(
    error: OSError | duckdb.Error, out: Path, entries: Sequence[SourceEntry]
) -> ResourceError | None:
    """The error with advice, or None if it is not about resources."""
    text = str(error).lower()
    full = isinstance(error, OSError) and error.errno in _DISK_FULL
    if full or any(words in text for words in DISK_FULL_WORDS):
        free = shutil.disk_usage(out.parent).free
        return ResourceError(
            f"the disk of {out} is full: about {_needed_bytes(entries):,} bytes are needed while "
            f"building, {free:,} are free ({error})"
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return ResourceError(f"building {out} ran out of its {STAGING_MEMORY} of memory: {error}")
    if isinstance(error, PermissionError):
        return ResourceError(f"no permission while building {out}: {error}")
    return None


def _needed_bytes(entries: Sequence[SourceEntry]) -> int:
    """About the bytes of a build: a table's rows are in blocks, in DuckDB and in parts."""
    needed = sum(
        entry.bytes // 20 if entry.format in _WITH_IMAGES else 3 * entry.bytes for entry in entries
    )
    return max(needed, _LEAST_BYTES)
