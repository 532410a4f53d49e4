"""Building a pool: an engine reads the sources into blocks, which are merged and written in order.

The blocks are in `.staging-POOL` beside the pool until it is there, so that the same command reads
only what is missing after a kill. Its catalog comes last: without one, a build was not finished.
Memory does not grow with the pool: a worker holds one block, DuckDB finds duplicates and groups the
rows of each image out of core, and the part writer holds one row group. Neither the engine nor a
kill shows in the pool's bytes.
"""

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from cit_curate.config import IN_PROCESS, Cleaning, EngineConfig
from cit_curate.engines.engine import Engine, open_engine
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.pool.build.blocks import (
    BYTES_PER_WORKER,
    open_staging,
    read_blocks,
    read_stripe,
    stripe_tasks,
)
from cit_curate.pool.build.malformed import Counted, check_limit, count_malformed, keeping_rejects
from cit_curate.pool.build.place import (
    builder_lock,
    check_free,
    finish_pool,
    rejects_path,
    staging_folder,
)
from cit_curate.pool.build.source_entries import Asked, check_unchanged, settings_of, source_entry
from cit_curate.pool.build.staging import Staging
from cit_curate.pool.format import (
    PoolManifest,
    SourceEntry,
    group_rows,
    parts_fingerprint,
    write_manifest,
)
from cit_curate.pool.parts import PartsWritten, cut_groups, write_parts, write_rejects
from cit_curate.sources.columns import Columns
from cit_curate.sources.parquet import column_kind
from cit_curate.sources.rows import RawPairs, SourceReader
from cit_curate.sources.source import Source, open_source
from cit_curate.storage.replace_folder import replacing

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
    """Build a pool folder; it is there whole, or not at all, but for its catalog.

    A pool that is there and lacks its catalog alone, as after a kill, is finished.

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
        BadInputError: Too many malformed records, or no pair at all; `rejects_path` lists them.
        DamagedError: A Parquet source is damaged, or a source changed while it was read.
        ResourceError: Disk full, or another build of the same pool is running.
    """
    if not 0 <= max_reject_ratio <= 1:
        raise ConfigError(f"max_reject_ratio is {max_reject_ratio}; it is a share from 0 to 1")
    out = out.absolute()
    readers = [open_source(source, columns) for source in sources]
    extra_types = _common_types(sources, readers)
    entries = tuple(source_entry(source) for source in sources)
    asked = Asked(name or out.name, entries, settings_of(clean, asdict(columns), {}))
    with builder_lock(out, entries):
        manifest = check_free(out, asked, overwrite=overwrite)
        if manifest is None:
            with (
                open_engine(engine, most_useful=_most_useful(sources, entries)) as workers,
                _blocks_of(out, sources, asked) as folders,
                replacing(out) as folder,
            ):
                blocks = _read(workers, sources, entries, folders, columns, clean)
                with closing(Staging(folder / "staging", extra_types)) as staging:
                    with keeping_rejects(rejects_path(out), partial(_rejects, staging)):
                        counts = _merge(staging, sources, blocks, max_reject_ratio, progress)
                    for source, entry in zip(sources, entries, strict=True):
                        check_unchanged(source, entry)
                    manifest = _write(staging, folder, progress)
                manifest = replace(
                    manifest,
                    name=asked.name,
                    cleaning=clean,
                    columns=asdict(columns),
                    num_records=sum(counts),
                    sources=tuple(
                        replace(entry, num_records=count)
                        for entry, count in zip(entries, counts, strict=True)
                    ),
                )
                write_manifest(folder, manifest)
        finish_pool(out, manifest)
    return manifest


def _most_useful(sources: Sequence[Source], entries: Sequence[SourceEntry]) -> int:
    """Workers that are worth their start; a folder of small files is read by one."""
    sized = zip(sources, entries, strict=True)
    return sum(entry.bytes for source, entry in sized if source.path.is_file()) // BYTES_PER_WORKER


@contextmanager
def _blocks_of(out: Path, sources: Sequence[Source], asked: Asked) -> Iterator[list[Path]]:
    """Give the folder of blocks of each source; a kill or one damaged source leaves them."""
    try:
        yield open_staging(staging_folder(out), sources, asked.sources, asked.settings)
    except (OSError, duckdb.Error, BadInputError):
        # Where the disk is full, its owner must not have to look for what fills it.
        shutil.rmtree(staging_folder(out), ignore_errors=True)
        raise


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
    check_limit(malformed, records, max_reject_ratio, staging.top_reasons)
    return counts


def _rejects(staging: Staging) -> Generator[pa.Table]:
    staging.flush()
    return staging.rejects()


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
