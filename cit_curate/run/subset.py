"""A subset of a pool: the pairs that a run selected, or the first images.

It is a pool like any other, with the columns, sources, image roots and pair order of the larger
pool. Training on a fixed selection is a scan of such a pool in which everything passes. Memory does
not grow with either pool.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.pool.catalog import rebuild_catalog
from cit_curate.pool.format import (
    CATALOG_NAME,
    MANIFEST_NAME,
    PoolManifest,
    SubsetOrigin,
    group_rows,
    parts_fingerprint,
    read_manifest,
    write_manifest,
)
from cit_curate.pool.lookup import create_places, open_staging
from cit_curate.pool.parts import cut_groups, image_starts, write_parts, write_rejects
from cit_curate.pool.pool import Pool
from cit_curate.records import Int64
from cit_curate.run.ledger import Run
from cit_curate.storage.lock import writer_lock
from cit_curate.storage.replace_folder import replacing
from cit_curate.storage.sql import Connection, count_rows, parquet

if TYPE_CHECKING:  # it loads the readers of all sources
    from cit_curate.pool.build.ingest import Progress

BATCH_ROWS = 65_536

# The rows of the run's pairs in the pool (`place`), and the pairs that the pool lacks.
_FOUND = (
    "CREATE TABLE found AS SELECT place FROM places SEMI JOIN wanted USING (image_id, text_key)"
)
_MISSING = """
SELECT concat(image_id, '_', text_key) AS pair_key
FROM wanted ANTI JOIN places USING (image_id, text_key)
"""


def subset_pool(
    pool: Pool,
    out: Path,
    *,
    run: Run | None = None,
    max_images: int | None = None,
    overwrite: bool = False,
    progress: "Progress" = lambda what, rows: None,
) -> Pool:
    """Write a pool of only the pairs that a run selected, each once, or of the first images.

    Its `pool.json` says what it was made from. When `out` holds the same subset already, nothing is
    written.

    Args:
        pool: The larger pool.
        out: The folder of the new pool, which appears whole or not at all.
        run: The run whose `selections` of all outer steps choose the pairs; None = all pairs.
        max_images: The number of images, from the start of the larger pool; None = all.
        overwrite: Whether to replace another subset at `out`; any other pool is left alone.
        progress: Called with the number of written rows.

    Raises:
        ConfigError: No pair is left, `out` is in use, or the run selected pairs of another pool.
        DamagedError: The pool lacks pairs although the run was made from it, or a file cannot be
            read.
        ResourceError: The disk is full, or another process writes the same subset.
    """
    if run is None and max_images is None:
        raise ValueError("give a run, max_images, or both; all pairs of a pool are the pool")
    if max_images is not None and max_images < 1:
        raise ConfigError(f"max_images is {max_images}; it must be at least 1")
    if run is not None and run.has_several_pools:
        raise ConfigError(
            f"{run.path} selected pairs of several pools, and a selection is cut out of one; make "
            "one pool of it first: cit export RUN PAIRS, then cit pool build PAIRS "
            "--image-id __key__ --out POOL"
        )
    out = out.absolute()
    origin = SubsetOrigin(
        pool_name=pool.name,
        pool_fingerprint=pool.fingerprint,
        max_images=max_images,
        run=run.path.resolve().name if run is not None else None,
        selection_sha256=_selection_sha256(run) if run is not None else None,
    )
    with writer_lock(out):
        if _is_made(out, origin, overwrite=overwrite):
            made = Pool.open(out)
            if not (out / CATALOG_NAME).is_file():  # its writer was killed before the catalog
                made.rebuild_catalog()
            return made
        with replacing(out) as folder:
            manifest = _write(pool, folder, run, _row_limit(pool, max_images), progress)
            manifest = replace(manifest, subset=origin)
            write_manifest(folder, manifest)
        rebuild_catalog(out, manifest)
    return Pool.open(out)


def _selection_sha256(run: Run) -> str:
    """The SHA-256 over the hashes of the run's selections, by outer step and lane.

    Raises:
        ConfigError: The run has no commit.
    """
    files = [file for commit in run.commits() for file in commit.files]
    hashes = [file.sha256 for file in files if file.path.startswith("selections/")]
    if not hashes:
        raise ConfigError(f"{run.path} has no committed outer step, so it has selected nothing yet")
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _is_made(out: Path, origin: SubsetOrigin, *, overwrite: bool) -> bool:
    """Whether `out` holds this subset already.

    Raises:
        ConfigError: `out` holds something else that may not be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST_NAME).is_file():
        raise ConfigError(f"{out} is not empty and holds no pool; choose another folder")
    try:
        old = read_manifest(out).subset
        if old is not None and old.decides == origin.decides:
            Pool.open(out)
            return True
    except DamagedError as error:
        if not overwrite:
            raise ConfigError(f"{out} is damaged ({error}); remove it, or overwrite it") from error
        return False
    if old is None:
        raise ConfigError(f"{out} is a pool of its own, no subset; choose another folder")
    if not overwrite:
        raise ConfigError(
            f"{out} holds another subset (of {old.pool_name}, run {old.run}, "
            f"max_images {old.max_images}); remove it, or overwrite it"
        )
    return False


def _row_limit(pool: Pool, max_images: int | None) -> int:
    """The number of rows of the first `max_images` images of the pool."""
    if max_images is None:
        return pool.num_pairs
    rows = images = 0
    for number, group in enumerate(pool.row_groups):
        if images + group.images > max_images:
            starts = image_starts(pool.read_row_groups([number])["image_id"])
            return rows + int(starts[max_images - images])
        rows, images = rows + group.rows, images + group.images
    return rows


def _write(
    pool: Pool, folder: Path, run: Run | None, limit: int, progress: "Progress"
) -> PoolManifest:
    with open_staging(folder / "staging") as sql:
        if run is None:
            num_pairs, rows = limit, _ranges(limit)
        else:
            _find(sql, pool, run)
            sql.execute(f"CREATE TABLE chosen AS FROM found WHERE place < {limit}")
            num_pairs, rows = count_rows(sql, "chosen"), _chosen_rows(sql)
        if not num_pairs:
            within = "" if limit == pool.num_pairs else f" within its first {limit:,} pairs"
            raise ConfigError(f"{run and run.path} selected no pair of {pool.location}{within}")
        # Closed before the database, which would wait for it.
        with closing(rows):
            tables = _read_rows(pool, rows, progress)
            schema = pq.read_schema(pool.part_path(0))
            written = write_parts(cut_groups(tables, group_rows(num_pairs)), folder, schema)
    assert written.num_pairs == num_pairs
    return replace(
        pool.manifest,
        fingerprint=parts_fingerprint(written.parts),
        num_pairs=written.num_pairs,
        num_images=written.num_images,
        num_with_image=written.num_with_image,
        text_keys=dict(sorted(written.text_keys.items())),
        rejects={},
        parts=tuple(written.parts),
        reject_parts=write_rejects((), folder),
    )


def _find(sql: Connection, pool: Pool, run: Run) -> None:
    """Make the table `found`: the row in the pool of each pair that the run selected.

    Raises:
        DamagedError: The pool lacks some of these pairs, although the run was made from it.
        ConfigError: The pool lacks some, and the run was made from another pool.
    """
    create_places(sql, pool)
    sql.execute(
        "CREATE TABLE wanted AS SELECT DISTINCT image_id, text_key "  # noqa: S608
        f"FROM {parquet(run.files('selections'))}"
    )
    sql.execute(_FOUND)
    wanted = count_rows(sql, "wanted")
    if missing := wanted - count_rows(sql, "found"):
        examples = sql.execute(f"{_MISSING} ORDER BY pair_key LIMIT 3").fetchall()
        raise _not_in_pool(pool, run, missing, wanted, [str(key) for (key,) in examples])


def _not_in_pool(
    pool: Pool, run: Run, missing: int, wanted: int, examples: Sequence[str]
) -> ConfigError | DamagedError:
    what = (
        f"{missing:,} of the {wanted:,} pairs that {run.path} selected are not in {pool.location}, "
        f"as {', '.join(examples)}"
    )
    if run.config.get("pool_fingerprint") == pool.fingerprint:
        return DamagedError(
            f"{what}, although it was made from this pool: the run's files were changed; make the "
            "run again"
        )
    return ConfigError(
        f"{what}; the run was made from {run.config.get('pool', 'another pool')}: name that pool, "
        "or carry the selection over with cit export RUN counts.json and "
        f"cit import-counts counts.json --pool {pool.location}"
    )


def _ranges(limit: int) -> Generator[Int64]:
    for start in range(0, limit, BATCH_ROWS):
        yield np.arange(start, min(start + BATCH_ROWS, limit), dtype=np.int64)


def _chosen_rows(sql: Connection) -> Generator[Int64]:
    query = "SELECT place FROM chosen ORDER BY place"
    with sql.sql(query).to_arrow_reader(BATCH_ROWS) as reader:
        for batch in reader:
            yield batch["place"].to_numpy()


def _read_rows(pool: Pool, rows: Iterator[Int64], progress: "Progress") -> Iterator[pa.Table]:
    """All columns of some rows of the pool, which ascend, with one part at a time in memory."""
    first_rows = np.array([0, *accumulate(part.file.rows for part in pool.parts)])
    loaded: tuple[int, Any] = (-1, None)
    num_rows = 0
    for block in rows:
        of_part = np.searchsorted(first_rows, block, side="right") - 1
        for part in np.unique(of_part).tolist():
            if loaded[0] != part:
                loaded = (part, None)  # frees the last part before the next one is read
                loaded = (part, _read_part(pool, part))
            yield loaded[1].take(pa.array(block[of_part == part] - first_rows[part]))
        num_rows += len(block)
        progress("writing", num_rows)


def _read_part(pool: Pool, part: int) -> pa.Table:
    path = pool.part_path(part)
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            return file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedError(
            f"{path} cannot be read: {error}; see: cit pool verify {pool.location}"
        ) from error
