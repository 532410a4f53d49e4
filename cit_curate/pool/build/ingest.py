"""Building a pool: an engine reads the sources into blocks, plans the parts, then writes them.

The blocks stay in `.staging-POOL` beside the pool until it is complete, so that after a kill the
same command reads only what is missing. The catalog comes last: a pool without one is unfinished.
Memory grows with the pool only by a few numbers for each block and part. A worker holds one batch
of rows and the rejects of one block, or one row group of a part; `plan` describes its own memory.
The pool's bytes depend neither on the engine nor on kills.
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

from cit_curate.carried import NotCarriedError, carried_type
from cit_curate.config import IN_PROCESS, MAX_REJECT_RATIO, Cleaning, EngineConfig
from cit_curate.engines.engine import Engine, open_engine
from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.pool.build.image_look import (
    ImageLook,
    check_some_are_there,
    look_at_images,
    shares_there,
    to_respell,
    with_looks,
)
from cit_curate.pool.build.malformed import (
    AS_USUAL,
    LONGEST_RUN,
    InARow,
    check_limit,
    keeping_rejects,
)
from cit_curate.pool.build.place import (
    builder_lock,
    check_free,
    finish_pool,
    open_staging,
    rejects_path,
    staging_folder,
)
from cit_curate.pool.build.plan import Plan, planned
from cit_curate.pool.build.reading import (
    BYTES_PER_WORKER,
    Damage,
    Found,
    PieceTask,
    blocks_in_order,
    damaged,
    damaged_block,
    piece_tasks,
)
from cit_curate.pool.build.source_entries import Asked, check_unchanged, settings_of, source_entry
from cit_curate.pool.build.summary import guesses_of, summarised, write_build_report
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
from cit_curate.sources.folders.folder import no_captions
from cit_curate.sources.rows import IdLists, SourceReader
from cit_curate.sources.source import Source, open_source
from cit_curate.storage.replace_folder import replacing

# The rejects of a folder in which nothing is wrong but that it has no captions.
_NO_CAPTIONS = {"image_without_text", "text_without_image", "format_not_allowed"}

Progress = Callable[..., None]
"""Called now and then with the current phase and the rows done; for YFCC100M, whose length is
known, also with the share of the whole."""


def build_pool(
    sources: Sequence[Source],
    out: Path,
    *,
    columns: Columns | None,
    clean: Cleaning = "none",
    name: str | None = None,
    max_reject_ratio: float | None = None,
    allow_missing_images: bool = False,
    engine: EngineConfig = IN_PROCESS,
    overwrite: bool = False,
    progress: Progress = lambda *state: None,
) -> PoolManifest:
    """Build a pool folder, which appears complete except for its catalog, or not at all.

    An existing pool that lacks only its catalog, as after a kill, is finished.

    Args:
        sources: The sources, in the order that the pool will have.
        out: The pool's folder. `.staging-OUT` beside it holds the blocks until it is complete.
        columns: The columns of tables; an image folder needs none; None for YFCC100M.
        clean: The named cleaning of every text.
        name: The pool's name; default the folder's.
        max_reject_ratio: Largest share of malformed records (`sources.rows.MALFORMED`); None = the
            default, and no more than 100 in a row.
        allow_missing_images: Whether to go on if no image of a source is there.
        engine: The workers that read sources and write parts.
        overwrite: Whether to replace an existing pool.
        progress: Callback, see `Progress`.

    Raises:
        ConfigError: A column is missing or has another type in another source, a list holds no
            image ids, or `out` is in use.
        BadInputError: Too many malformed records, or no pair at all; `rejects_path` lists them. Or
            none of a source's images is there.
        DamagedError: A source, list or block is damaged, or a source changed while it was read. A
            source is left out instead where `ReadConfig.on_damaged` is `skip`.
        ResourceError: The disk is full, a worker was killed, or another build of the same pool is
            running.
    """
    stops = InARow(LONGEST_RUN, max_reject_ratio) if max_reject_ratio else AS_USUAL
    max_ratio = MAX_REJECT_RATIO if max_reject_ratio is None else max_reject_ratio
    if not 0 <= max_ratio <= 1:
        raise ConfigError(f"max_reject_ratio is {max_ratio}; it is a share from 0 to 1")
    out = out.absolute()
    readers = [_opened(source, columns or Columns()) for source in sources]
    schema = pair_schema(_common_types(sources, readers))
    entries = tuple(source_entry(source) for source in sources)
    lists = _read_lists(readers, progress)
    named_columns = {**(asdict(columns) if columns else {}), **_changed_reading(sources)}
    settings = settings_of(clean, named_columns, lists.described if lists else {})
    request = Asked(name or out.name, entries, settings)
    with builder_lock(out, entries):
        manifest = check_free(out, request, overwrite=overwrite)
        if manifest is None:
            most_useful = _most_useful(sources, readers, entries)
            with (
                open_engine(engine, most_useful=most_useful) as workers,
                _blocks_of(out, sources, readers, request, lists) as folders,
                replacing(out) as folder,
            ):
                found = Found(by_line=lists is not None, stops=stops)
                tasks = _tasks(
                    workers, sources, entries, readers, folders, columns, clean, stops=stops
                )
                with keeping_rejects(rejects_path(out), found.rejects):
                    _read(workers, sources, tasks, folders, found, progress)
                    _check(found, sources, max_ratio)
                progress("looking at images", 0)
                looks = look_at_images(sources, found.blocks)
                if not allow_missing_images:
                    check_some_are_there(looks)
                for source, entry in zip(sources, entries, strict=True):
                    check_unchanged(source, entry)
                places = {entry.name: entry.path for entry in entries}
                with planned(found.blocks, folder / "staging", places) as plan:
                    manifest, repaired = _write(
                        workers, plan, found, folder, schema, looks, progress
                    )
                    numbered = plan.numbered
                    id_lists = lists.found(plan.num_rows, plan.num_images) if lists else {}
                manifest = replace(
                    manifest,
                    name=request.name,
                    cleaning=clean,
                    columns=named_columns,
                    sources=tuple(
                        replace(entry, num_records=count, damaged=bool(of_source.damage))
                        for entry, count, of_source in zip(
                            entries, found.records, found.sources, strict=True
                        )
                    ),
                    id_lists={**lists.described, **id_lists} if lists else {},
                )
                guesses = [
                    (*source.notes, *guessed)
                    for source, guessed in zip(sources, guesses_of(readers), strict=True)
                ]
                report = summarised(
                    sources, found.sources, guesses, manifest.rejects, found.firsts, numbered
                )
                write_build_report(folder, with_looks(report, looks, repaired))
                write_manifest(folder, manifest)
        finish_pool(out, manifest)
    return manifest


def _opened(source: Source, columns: Columns) -> SourceReader:
    """The reader of a source; one without rows for a damaged source that is left out."""
    try:
        return open_source(source, columns)
    except DamagedError as error:
        if source.yfcc is not None:
            raise
        if source.reading.on_damaged == "stop":
            raise damaged(str(error)) from error
        return SourceReader(columns=None, extra_types={}, read=lambda: iter(()))


def _changed_reading(sources: Sequence[Source]) -> dict[str, object]:
    """How the sources are read, where that is not the default and matters to the blocks."""
    changed = sources[0].reading.changed
    changed.pop("on_damaged", None)
    return changed


def _read_lists(readers: Sequence[SourceReader], progress: Progress) -> IdLists | None:
    """The lists of ids of the only source that has any."""
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
    """The number of workers worth starting; a folder of small files is read by one."""
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
    request: Asked,
    lists: IdLists | None,
) -> Iterator[list[Path]]:
    """The folder of blocks of each source; they survive a kill or a damaged source."""
    try:
        ranges = [reader.range_bytes for reader in readers if reader.range_bytes]
        settings = {**request.settings, **({"range bytes": ranges} if ranges else {})}
        folders = open_staging(staging_folder(out), sources, request.sources, settings)
        if lists is not None:
            lists.save(folders[0])
        yield folders
    except (OSError, duckdb.Error, BadInputError):
        # On a full disk, a user should not have to search for what fills it. YFCC takes so long to
        # read that its blocks are kept even then.
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
    *,
    stops: InARow,
) -> list[list[PieceTask]]:
    """The pieces of each source."""
    spare = -(-engine.num_workers // len(sources))
    asked = columns or Columns()
    return [
        piece_tasks(folder, source, entry, reader, asked, clean, num_workers=spare, stops=stops)
        for folder, source, entry, reader in zip(folders, sources, entries, readers, strict=True)
    ]


def _read(
    engine: Engine,
    sources: Sequence[Source],
    tasks: Sequence[Sequence[PieceTask]],
    folders: Sequence[Path],
    found: Found,
    progress: Progress,
) -> None:
    """Read every source into blocks, and count its records and rejects."""
    results = blocks_in_order(engine.mapped, tasks)
    for source, pieces, folder, result in zip(sources, tasks, folders, results, strict=True):
        damage = result.detail if isinstance(result, Damage) else ""
        of_source = (
            iter([damaged_block(folder, source, result)]) if isinstance(result, Damage) else result
        )
        ends = [piece.span[1] for piece in pieces if piece.span]
        if ends:
            progress("reading", 0, 0.0)
        for number, rows in enumerate(found.add_source(source.path, of_source, damage)):
            progress("reading", rows, *([ends[number] / ends[-1]] if ends else ()))


def _check(found: Found, sources: Sequence[Source], max_reject_ratio: float) -> None:
    """Raise if too many records were malformed, or no pair came of them."""
    paths = ", ".join(str(source.path) for source in sources)
    limit = partial(
        check_limit,
        found.num_malformed,
        sum(found.records) + found.num_further_lines,
        max_reject_ratio,
        found.top_reasons,
    )
    if found.by_line:
        limit()
    if found.num_pairs == 0:
        folders = [source.path for source in sources if source.format == "folder"]
        is_silent = (
            "image_without_text" in found.reasons and not found.reasons.keys() - _NO_CAPTIONS
        )
        advice = no_captions(folders[0]) if folders and is_silent else ""
        raise BadInputError(found.no_pairs(paths) + advice)
    limit()


def _write(
    engine: Engine,
    plan: Plan,
    found: Found,
    folder: Path,
    schema: pa.Schema,
    looks: Sequence[ImageLook],
    progress: Progress,
) -> tuple[PoolManifest, Counter[str]]:
    """The manifest of the written pool, and the image paths respelled in each source."""

    def report(rows: int) -> None:
        progress("writing", rows, *([rows / plan.num_pairs] if found.by_line else ()))

    report(0)
    written = write_pairs(engine.mapped, plan, folder, schema, report, respell=to_respell(looks))
    repeats = plan.staging.rejects() if plan.staging else None
    with closing(repeats or found.rejects()) as closed:
        rejects = chain(found.rejects(), closed) if repeats else closed
        reject_parts = write_rejects(rejects, folder)
    reasons = Counter(found.reasons)
    reasons.update(plan.numbered.rejects)
    shares = shares_there(looks)
    manifest = PoolManifest(
        name="",
        fingerprint=parts_fingerprint(written.parts),
        cleaning="",
        columns={},
        num_pairs=written.num_pairs,
        num_images=written.num_images,
        num_with_image=sum(
            round(count * shares.get(name, 1.0)) for name, count in written.with_image.items()
        ),
        num_records=sum(found.records),
        text_keys=dict(sorted(written.text_keys.items())),
        rejects=dict(sorted(reasons.items())),
        sources=(),
        parts=tuple(written.parts),
        reject_parts=reject_parts,
    )
    return manifest, written.respelled


def _common_types(
    sources: Sequence[Source], readers: Sequence[SourceReader]
) -> Mapping[str, pa.DataType]:
    """The type of each extra column in the pool; a column without a value takes any."""
    common: dict[str, pa.DataType] = {}
    found: dict[str, tuple[pa.DataType, Path]] = {}
    for source, reader in zip(sources, readers, strict=True):
        for name, kind in reader.extra_types.items():
            try:
                carried = carried_type(kind)
            except NotCarriedError as error:
                raise ConfigError(
                    f"--extra {name}: the column is {kind} in {source.path}, which a pool does not "
                    f"store ({error}); leave it out, or convert it first"
                ) from error
            if name not in common or pa.types.is_null(common[name]):
                common[name], found[name] = carried, (kind, source.path)
            elif carried != common[name] and not pa.types.is_null(carried):
                first, path = found[name]
                raise ConfigError(
                    f"column {name!r} is {kind} in {source.path} and {first} in {path}; give it "
                    "one type, or build two pools"
                )
    return common
