"""Building a pool: an engine reads the sources into blocks, which are merged and written in order.

The blocks are in `.staging-POOL` beside the pool until it is there, so that the same command reads
only what is missing after a kill. Memory does not grow with the pool: a worker holds one block,
DuckDB finds duplicates and groups the rows of each image out of core, and the part writer holds one
row group. Neither the engine nor a kill shows in the pool's bytes.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import pyarrow as pa

from cit_curate.config import IN_PROCESS, Cleaning, EngineConfig
from cit_curate.errors import BadInputError, ConfigError, DamagedError, ResourceError
from cit_curate.lock import owner_lock
from cit_curate.pool.blocks import (
    BYTES_PER_WORKER,
    open_staging,
    read_blocks,
    read_stripe,
    stripe_tasks,
)
from cit_curate.pool.catalog import rebuild_catalog
from cit_curate.pool.engines import Engine, open_engine
from cit_curate.pool.format import (
    CATALOG_NAME,
    MANIFEST_NAME,
    PoolManifest,
    SourceEntry,
    group_rows,
    parts_fingerprint,
    read_manifest,
    write_manifest,
)
from cit_curate.pool.malformed import Counted, check_budget, count_malformed
from cit_curate.pool.parts import PartsWritten, cut_groups, write_parts, write_rejects
from cit_curate.pool.staging import STAGING_MEMORY, Staging
from cit_curate.remote import remote_url
from cit_curate.replacing import replacing
from cit_curate.sources.columns import Columns
from cit_curate.sources.parquet import column_kind
from cit_curate.sources.rows import RawPairs, SourceReader
from cit_curate.sources.source import Source, open_source

HEAD_BYTES = 1 << 20
STAGING_PREFIX = ".staging-"

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK_FULL_WORDS = ("no space left", "file too large", "quota exceeded", "max_temp_directory_size")

Progress = Callable[[str, int], None]
"""Called with what is being done and how many rows are done, now and then."""


def build_pool(
    sources: Sequence[Source],
    out: Path,
    *,
    columns: Columns,
    clean: Cleaning = "none",
    name: str | None = None,
    max_reject_ratio: float = 0.01,
    engine: EngineConfig = IN_PROCESS,
    overwrite: bool = False,
    progress: Progress = lambda what, rows: None,
) -> PoolManifest:
    """Build a pool folder; it is there whole, or not at all.

    Args:
        sources: What to read, in the order that the pool will have.
        out: The pool's folder.
        columns: Where tables keep what; an image folder needs none of it.
        clean: Named cleaning of every text.
        name: The pool's name; default the folder's.
        max_reject_ratio: Largest share of malformed records (`sources.rows.MALFORMED`).
        engine: Where sources are read.
        overwrite: Replace a pool that is there.
        progress: Told how far it is.

    Raises:
        ConfigError: A column is missing or has another type in another source, or `out` is in use.
        BadInputError: Too many malformed records, or no pair at all.
        DamagedError: A Parquet source is damaged, or a source changed while it was read.
        ResourceError: Disk full, or another build of the same pool is running.
    """
    if not 0 <= max_reject_ratio <= 1:
        raise ConfigError(f"max_reject_ratio is {max_reject_ratio}; it is a share from 0 to 1")
    out = out.absolute()
    _check_free(out, sources, overwrite=overwrite)
    readers = [open_source(source, columns) for source in sources]
    extra_types = _common_types(sources, readers)
    entries = [source_entry(source) for source in sources]
    most_useful = sum(entry.bytes for entry in entries) // BYTES_PER_WORKER
    with (
        builder_lock(out, sources, entries, overwrite=overwrite),
        open_engine(engine, most_useful=most_useful) as workers,
    ):
        with _blocks_of(out, sources, entries, asdict(columns), clean) as folders:
            blocks = _read(workers, sources, entries, folders, columns, clean)
            with replacing(out) as folder:
                with closing(Staging(folder / "staging", extra_types)) as staging:
                    counts = _merge(staging, sources, blocks, max_reject_ratio, progress)
                    for source, entry in zip(sources, entries, strict=True):
                        check_unchanged(source, entry)
                    manifest = _write(staging, folder, progress)
                manifest = replace(
                    manifest,
                    name=name or out.name,
                    cleaning=clean,
                    columns=asdict(columns),
                    num_records=sum(counts),
                    sources=tuple(
                        replace(entry, num_records=count)
                        for entry, count in zip(entries, counts, strict=True)
                    ),
                )
                write_manifest(folder, manifest)
        rebuild_catalog(out, manifest)
    return manifest


@contextmanager
def builder_lock(
    out: Path, sources: Sequence[Source], entries: Sequence[SourceEntry], *, overwrite: bool
) -> Iterator[None]:
    """Be the only builder of the pool `out`, whose place is free, while the block runs.

    Raises:
        ConfigError: `out` is in use.
        ResourceError: Another builder is running, or the block ran out of disk or memory.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with owner_lock(out.with_name(f".lock-{out.name}")):
            # Only now: the first of two builders may have just finished.
            _check_free(out, sources, overwrite=overwrite)
            yield
    except (OSError, duckdb.Error) as error:
        explained = _explained(error, out, entries)
        if explained is None:
            raise
        raise explained from error


def check_unchanged(source: Source, entry: SourceEntry) -> None:
    """Raise unless a source is still as it was when `entry` was made.

    Raises:
        DamagedError: It changed.
    """
    if source_entry(source) != entry:
        raise DamagedError(f"{source.path} changed while it was read; build again")


@contextmanager
def _blocks_of(
    out: Path, sources: Sequence[Source], entries: Sequence[SourceEntry], *settings: object
) -> Iterator[list[Path]]:
    """Give the folder of blocks of each source; a kill or one damaged source leaves them."""
    staging = out.with_name(f"{STAGING_PREFIX}{out.name}")
    try:
        yield open_staging(staging, sources, entries, *settings)
    except (OSError, duckdb.Error, BadInputError):
        # Where the disk is full, its owner must not have to look for what fills it.
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging)


def _read(
    engine: Engine,
    sources: Sequence[Source],
    entries: Sequence[SourceEntry],
    folders: Sequence[Path],
    columns: Columns,
    clean: Cleaning,
) -> Iterator[Iterator[RawPairs]]:
    """The blocks of each source, as soon as it is read; later ones are read meanwhile."""
    spare = -(-engine.num_workers // len(sources))
    tasks = [
        stripe_tasks(folder, source, entry, columns, clean, num_workers=spare)
        for folder, source, entry in zip(folders, sources, entries, strict=True)
    ]
    done = engine.mapped(read_stripe, [task for each in tasks for task in each])
    for folder, each in zip(folders, tasks, strict=True):
        for _ in each:
            next(done)
        yield read_blocks(folder)


def _merge(
    staging: Staging,
    sources: Sequence[Source],
    blocks: Iterator[Iterator[RawPairs]],
    max_reject_ratio: float,
    progress: Progress,
) -> list[int]:
    """Put the blocks of every source into the staging database; gives the records of each."""
    counts = []
    malformed = records = 0
    for source, read in zip(sources, blocks, strict=True):
        counted = Counted()
        for pairs in read:
            staging.add(source.name, pairs)
            counted = count_malformed(
                counted, pairs.rejects, pairs.num_records, source.path, staging.top_reasons
            )
            progress("reading", records + counted.num_records)
        counts.append(counted.num_records)
        malformed += counted.num_malformed
        records += counted.num_records
    staging.flush()
    if staging.num_pairs == 0:
        what = f"{records:,} rows were read" if records else "there is no row"
        raise BadInputError(
            f"{', '.join(str(source.path) for source in sources)}: {what} and no pair came of them"
            f"{staging.top_reasons()}"
        )
    check_budget(malformed, records, max_reject_ratio, staging.top_reasons)
    return counts


def _write(staging: Staging, folder: Path, progress: Progress) -> PoolManifest:
    with closing(staging.ordered()) as ordered, closing(staging.rejects()) as rejects:
        groups = cut_groups(_reported(ordered, progress), group_rows(staging.num_pairs))
        written: PartsWritten = write_parts(groups, folder, staging.schema)
        reject_parts = write_rejects(rejects, folder)
    return PoolManifest(
        name="",
        fingerprint=parts_fingerprint(written.parts),
        cleaning="",
        columns={},
        num_pairs=written.num_pairs,
        num_images=written.num_images,
        num_with_image=written.num_with_image,
        num_records=0,
        text_keys=dict(sorted(written.text_keys.items())),
        rejects=dict(sorted(staging.reasons.items())),
        sources=(),
        parts=tuple(written.parts),
        reject_parts=reject_parts,
    )


def _reported(tables: Iterator[pa.Table], progress: Progress) -> Iterator[pa.Table]:
    rows = 0
    for table in tables:
        yield table
        rows += table.num_rows
        progress("writing", rows)


def changed_sources(manifest: PoolManifest) -> list[str]:
    """What became of a pool's sources since it was built: a sentence per missing or changed one."""
    changes = []
    for entry in manifest.sources:
        if remote_url(entry.path) is not None:
            continue  # Its store is not asked without need.
        path = Path(entry.path)
        if not path.exists():
            changes.append(f"the source {path} is gone")
            continue
        source = Source(entry.name, path, entry.format, Path(entry.image_root))  # type: ignore[arg-type]
        now = source_entry(source)
        if (now.bytes, now.head_sha256) != (entry.bytes, entry.head_sha256):
            sizes = f"{entry.bytes:,} bytes, now {now.bytes:,}"
            changes.append(f"the source {path} has changed ({sizes})")
        elif now.mtime_ns != entry.mtime_ns:
            changes.append(f"the source {path} was written again")
    return changes


def _check_free(out: Path, sources: Sequence[Source], *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file; --out names the folder of the new pool")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).exists() and not (out / "pairs").is_dir():
        raise ConfigError(f"{out} is not empty and holds no pool; choose another --out")
    for source in sources:
        if source.path.is_relative_to(out.resolve()):
            raise ConfigError(
                f"the source {source.path} lies inside the pool {out} it would replace"
            )
    if not overwrite:
        try:
            changes = changed_sources(read_manifest(out))
        except DamagedError as error:
            changes = [str(error)]
        state = "; ".join(changes) if changes else "its sources have not changed since"
        if not (out / CATALOG_NAME).is_file():
            state += f"; what it lacks, its catalog, is written by: cit pool repair {out}"
        raise ConfigError(f"{out} holds a pool already ({state}); --overwrite builds it again")


def _common_types(
    sources: Sequence[Source], readers: Sequence[SourceReader]
) -> Mapping[str, pa.DataType]:
    first, types = sources[0], readers[0].extra_types
    for source, reader in zip(sources, readers, strict=True):
        for name, kind in reader.extra_types.items():
            if _carried_type(kind) != _carried_type(types[name]):
                raise ConfigError(
                    f"column {name!r} is {kind} in {source.path} and {types[name]} in "
                    f"{first.path}; give it one type, or build two pools"
                )
    return {name: _carried_type(kind) for name, kind in types.items()}


def _carried_type(kind: pa.DataType) -> pa.DataType:
    """The type that an extra column has in the pool; one integer does not always fit in another."""
    if column_kind(kind) == "text":
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def source_entry(source: Source) -> SourceEntry:
    """A source as it is now."""
    state = source.path.stat()
    is_file = source.path.is_file()
    head = b""
    if is_file:
        with source.path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    return SourceEntry(
        name=source.name,
        path=source.url or str(source.path),
        format=source.format,
        image_root=source.root_url or str(source.image_root),
        bytes=state.st_size if is_file else 0,
        # Of a local copy it would be the time when that was made or used.
        mtime_ns=0 if source.url else state.st_mtime_ns,
        head_sha256=hashlib.sha256(head).hexdigest() if is_file else "",
    )


def _explained(
    error: OSError | duckdb.Error, out: Path, entries: Sequence[SourceEntry]
) -> ResourceError | None:
    """The error as one that a person can act on, or None when it is not about resources."""
    text = str(error).lower()
    full = isinstance(error, OSError) and error.errno in _DISK_FULL
    if full or any(words in text for words in _DISK_FULL_WORDS):
        free = shutil.disk_usage(out.parent).free
        needed = 3 * sum(entry.bytes for entry in entries)
        return ResourceError(
            f"the disk of {out} is full: about {needed:,} bytes are needed while building, "
            f"{free:,} are free ({error})"
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return ResourceError(f"building {out} ran out of its {STAGING_MEMORY} of memory: {error}")
    if isinstance(error, PermissionError):
        return ResourceError(f"no permission while building {out}: {error}")
    return None
