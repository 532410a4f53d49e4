"""Building a pool: an engine reads the sources into blocks, a plan of their keys, then the parts.

The blocks are in `.staging-POOL` beside the pool until it is there, so that the same command reads
only what is missing after a kill. Its catalog comes last: without one, a build was not finished.
Memory does not grow with the pool but for a few numbers for each block and part: a worker holds one
batch of rows and the rejects of one block, or one row group of a part; `plan` says what it holds.
Neither the engine nor a kill shows in the pool's bytes.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa

from cit_curate.config import IN_PROCESS, Cleaning, EngineConfig
from cit_curate.engines.engine import Engine, open_engine
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.pool.build.malformed import check_limit, keeping_rejects
from cit_curate.pool.build.place import (
    builder_lock,
    check_free,
    finish_pool,
    rejects_path,
    staging_folder,
)
from cit_curate.pool.build.plan import Plan, planned
from cit_curate.pool.build.reading import (
    BYTES_PER_WORKER,
    Found,
    PieceTask,
    blocks_in_order,
    open_staging,
    piece_tasks,
)
from cit_curate.pool.build.source_entries import Asked, check_unchanged, settings_of, source_entry
from cit_curate.pool.build.writing import write_pairs
from cit_curate.pool.format import (
    PoolManifest,
    SourceEntry,
    pair_schema,
    parts_fingerprint,
    write_manifest,
)
from cit_curate.pool.parts import write_rejects
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import IdLists, SourceReader, carried_type
from cit_curate.sources.source import Source, open_source
from cit_curate.storage.replace_folder import replacing

Progress = Callable[..., None]
"""Called with what is being done and how many rows are done, now and then; of YFCC100M, whose
length is known, also with the share of all."""


def build_pool(
    sources: Sequence[Source],
    out: Path,
    *,
    columns: Columns | None,
    clean: Cleaning = "none",
    name: str | None = None,
    max_reject_ratio: float = 0.01,
    engine: EngineConfig = IN_PROCESS,
    overwrite: bool = False,
    progress: Progress = lambda *state: None,
) -> PoolManifest:
    """Build a pool folder; it is there whole, or not at all, but for its catalog.

    A pool that is there and lacks its catalog alone, as after a kill, is finished.

    Args:
        sources: What to read, in the order that the pool will have.
        out: The pool's folder. `.staging-OUT` beside it holds what was read until it is there.
        columns: Where tables keep what; an image folder needs none of it; None for YFCC100M.
        clean: Named cleaning of every text.
        name: The pool's name; default the folder's.
        max_reject_ratio: Largest share of malformed records (`sources.rows.MALFORMED`).
        engine: Where sources are read and parts are written.
        overwrite: Replace a pool that is there.
        progress: Told how far it is.

    Raises:
        ConfigError: A column is missing or has another type in another source, a list holds no
            image ids, or `out` is in use.
        BadInputError: Too many malformed records, or no pair at all; `rejects_path` lists them.
        DamagedError: A source, list or block is damaged, or a source changed while it was read.
        ResourceError: Disk full, a worker killed, or another build of the same pool is running.
    """
    if not 0 <= max_reject_ratio <= 1:
        raise ConfigError(f"max_reject_ratio is {max_reject_ratio}; it is a share from 0 to 1")
    out = out.absolute()
    readers = [open_source(source, columns or Columns()) for source in sources]
    schema = pair_schema(_common_types(sources, readers))
    entries = tuple(source_entry(source) for source in sources)
    lists = _read_lists(readers, progress)
    named_columns = asdict(columns) if columns else {}
    settings = settings_of(clean, named_columns, lists.described if lists else {})
    asked = Asked(name or out.name, entries, settings)
    with builder_lock(out, entries):
        manifest = check_free(out, asked, overwrite=overwrite)
        if manifest is None:
            most_useful = _most_useful(sources, readers, entries)
            with (
                open_engine(engine, most_useful=most_useful) as workers,
                _blocks_of(out, sources, readers, asked, lists) as folders,
                replacing(out) as folder,
            ):
                found = Found(by_line=lists is not None)
                tasks = _tasks(workers, sources, entries, readers, folders, columns, clean)
                with keeping_rejects(rejects_path(out), found.rejects):
                    _read(workers, sources, tasks, found, progress)
                    _check(found, sources, max_reject_ratio)
                for source, entry in zip(sources, entries, strict=True):
                    check_unchanged(source, entry)
                with planned(found.blocks, folder / "staging") as plan:
                    manifest = _write(workers, plan, found, folder, schema, progress)
                    id_lists = lists.found(plan.num_rows, plan.num_images) if lists else {}
                manifest = replace(
                    manifest,
                    name=asked.name,
                    cleaning=clean,
                    columns=named_columns,
                    sources=tuple(
                        replace(entry, num_records=count)
                        for entry, count in zip(entries, found.records, strict=True)
                    ),
                    id_lists={**lists.described, **id_lists} if lists else {},
                )
                write_manifest(folder, manifest)
        finish_pool(out, manifest)
    return manifest


def _read_lists(readers: Sequence[SourceReader], progress: Progress) -> IdLists | None:
    """The lists of ids of the only source that has some."""
    for reader in readers:
        if reader.read_lists is not None:
            progress("reading ids", 0, 0.0)
            lists = reader.read_lists()
            progress("reading ids", lists.num_ids, 1.0)
            return lists
    return None


def _most_useful(
    sources: Sequence[Source], readers: Sequence[SourceReader], entries: Sequence[SourceEntry]
) -> int:
    """Workers that are worth their start; a folder of small files is read by one."""
    striped = num_ranges = 0
    for source, reader, entry in zip(sources, readers, entries, strict=True):
        if reader.range_bytes:
            num_ranges += -(-entry.bytes // reader.range_bytes)
        elif source.path.is_file():
            striped += entry.bytes
    return num_ranges + striped // BYTES_PER_WORKER


@contextmanager
def _blocks_of(
    out: Path,
    sources: Sequence[Source],
    readers: Sequence[SourceReader],
    asked: Asked,
    lists: IdLists | None,
) -> Iterator[list[Path]]:
    """Give the folder of blocks of each source; a kill or one damaged source leaves them."""
    try:
        ranges = [reader.range_bytes for reader in readers if reader.range_bytes]
        settings = {**asked.settings, **({"range bytes": ranges} if ranges else {})}
        folders = open_staging(staging_folder(out), sources, asked.sources, settings)
        if lists is not None:
            lists.save(folders[0])
        yield folders
    except (OSError, duckdb.Error, BadInputError):
        # Where the disk is full, its owner must not have to look for what fills it. YFCC takes so
        # long to read that it is kept even then.
        if lists is None:
            shutil.rmtree(staging_folder(out), ignore_errors=True)
        raise


def _tasks(
    engine: Engine,
    sources: Sequence[Source],
    entries: Sequence[SourceEntry],
    readers: Sequence[SourceReader],
    folders: Sequence[Path],
    columns: Columns | None,
    clean: Cleaning,
) -> list[list[PieceTask]]:
    """The pieces of each source."""
    spare = -(-engine.num_workers // len(sources))
    return [
        piece_tasks(folder, source, entry, reader, columns or Columns(), clean, num_workers=spare)
        for folder, source, entry, reader in zip(folders, sources, entries, readers, strict=True)
    ]


def _read(
    engine: Engine,
    sources: Sequence[Source],
    tasks: Sequence[Sequence[PieceTask]],
    found: Found,
    progress: Progress,
) -> None:
    """Read every source, and count what comes of it."""
    blocks = blocks_in_order(engine.mapped, tasks)
    for source, pieces, of_source in zip(sources, tasks, blocks, strict=True):
        ends = [piece.span[1] for piece in pieces if piece.span]
        if ends:
            progress("reading", 0, 0.0)
        for number, rows in enumerate(found.add_source(source.path, of_source)):
            progress("reading", rows, *([ends[number] / ends[-1]] if ends else ()))


def _check(found: Found, sources: Sequence[Source], max_reject_ratio: float) -> None:
    """Raise when too much was malformed, or no pair came of it all."""
    paths = ", ".join(str(source.path) for source in sources)
    limit = partial(
        check_limit,
        found.num_malformed,
        sum(found.records),
        max_reject_ratio,
        found.top_reasons,
    )
    if found.by_line:
        limit()
    if found.num_pairs == 0:
        raise BadInputError(found.no_pairs(paths))
    limit()


def _write(
    engine: Engine,
    plan: Plan,
    found: Found,
    folder: Path,
    schema: pa.Schema,
    progress: Progress,
) -> PoolManifest:
    def told(rows: int) -> None:
        progress("writing", rows, *([rows / plan.num_pairs] if found.by_line else ()))

    told(0)
    written = write_pairs(engine.mapped, plan, folder, schema, told)
    repeats = plan.staging.rejects() if plan.staging else None
    with closing(repeats or found.rejects()) as closed:
        rejects = chain(found.rejects(), closed) if repeats else closed
        reject_parts = write_rejects(rejects, folder)
    reasons = Counter(found.reasons)
    if plan.num_repeats:
        reasons["duplicate_key"] += plan.num_repeats
    return PoolManifest(
        name="",
        fingerprint=parts_fingerprint(written.parts),
        cleaning="",
        columns={},
        num_pairs=written.num_pairs,
        num_images=written.num_images,
        num_with_image=written.num_with_image,
        num_records=sum(found.records),
        text_keys=dict(sorted(written.text_keys.items())),
        rejects=dict(sorted(reasons.items())),
        sources=(),
        parts=tuple(written.parts),
        reject_parts=reject_parts,
    )


def _common_types(
    sources: Sequence[Source], readers: Sequence[SourceReader]
) -> Mapping[str, pa.DataType]:
    first, types = sources[0], readers[0].extra_types
    for source, reader in zip(sources, readers, strict=True):
        for name, kind in reader.extra_types.items():
            if carried_type(kind) != carried_type(types[name]):
                raise ConfigError(
                    f"column {name!r} is {kind} in {source.path} and {types[name]} in "
                    f"{first.path}; give it one type, or build two pools"
                )
    return {name: carried_type(kind) for name, kind in types.items()}
