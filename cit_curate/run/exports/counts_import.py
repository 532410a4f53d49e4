"""The import of a curated dataset that was published as counts: a run over one's own pool.

The run has one outer step. Its `selections` are the file's pairs that the pool has, in pool order,
and its `used` rows are the counts. Such a file does not say how similar a pair was, to which entry,
or when it was used: those columns are null.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cit_curate.config import MAX_MISSING_RATIO, MAX_REJECT_RATIO
from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.pool.lookup import create_places, open_staging
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.reject_limit import RejectLimit
from cit_curate.run.environment import describe_environment
from cit_curate.run.exports.counts_file import (
    ENTRY_SCHEMA,
    REJECT_SCHEMA,
    read_counts,
)
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import HISTOGRAM_BINS, SCHEMAS
from cit_curate.storage.durable import FileEntry, check_sums, file_sha256
from cit_curate.storage.lock import writer_lock
from cit_curate.storage.sql import Connection, count_rows

BATCH_ROWS = 65_536

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, how much of it is done, and its total."""

_REPEATS = """
CREATE TABLE repeats AS
SELECT later.entry, later.pair_key, 'duplicate_key' AS reason,
       'entry ' || later.entry || ': the key came first as entry ' || first || ', with count '
       || earlier.count || '; now it has ' || later.count AS detail
FROM (SELECT pair_key, min(entry) AS first FROM entries GROUP BY pair_key HAVING count(*) > 1)
JOIN entries AS later USING (pair_key) JOIN entries AS earlier ON earlier.entry = first
WHERE later.entry > first
"""
_FOUND = """
CREATE TABLE found AS
SELECT place, entries.entry, entries.pair_key, image_id, text_key, entries.count
FROM places JOIN entries ON places.pair_key = entries.pair_key
"""
_MISSING = """
INSERT INTO rejects
SELECT entry, pair_key, 'not_in_pool', 'entry ' || entry || ': the pool has no such pair'
FROM entries ANTI JOIN found USING (entry)
"""
_SELECTIONS = """
SELECT 0 AS outer_step, 0 AS lane, place AS scan_position, pair_key, image_id, text_key,
       NULL::FLOAT AS similarity, NULL::INTEGER AS metadata_id, NULL::VARCHAR AS metadata_text,
       'imported' AS reason, '' AS encoder, getvariable('pool') AS pool
FROM found ORDER BY place
"""
_USED = """
SELECT 0 AS outer_step, 0 AS lane, pair_key, count AS times_used,
       NULL::BIGINT AS first_update, NULL::BIGINT AS last_update, getvariable('pool') AS pool
FROM found ORDER BY place
"""
_REJECTS = """
SELECT 0 AS outer_step, 0 AS lane, NULL::BIGINT AS scan_position, pair_key, '' AS image_uri,
       reason, detail, NULL::VARCHAR AS pool, NULL::VARCHAR AS source
FROM rejects ORDER BY entry
"""


@dataclass(frozen=True)
class ImportedCounts:
    """The result of an import.

    Attributes:
        run: The new run.
        num_entries: The entries of the file.
        num_pairs: The pairs of the run.
        num_uses: The sum of their counts.
        num_missing: The good entries whose pair is not in the pool.
        rejects: The rejected entries by reason, the missing ones included.
    """

    run: Run
    num_entries: int
    num_pairs: int
    num_uses: int
    num_missing: int
    rejects: dict[str, int]


def import_counts(
    file: Path,
    pool: Pool,
    out: Path,
    *,
    max_missing_ratio: float = MAX_MISSING_RATIO,
    max_reject_ratio: float = MAX_REJECT_RATIO,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> ImportedCounts:
    """Make a run of a file of counts; it appears whole or not at all.

    Args:
        file: The counts; see `read_counts`.
        pool: The pool in which the pair keys are looked up.
        out: The folder of the new run.
        max_missing_ratio: The largest share of the good entries that the pool may lack.
        max_reject_ratio: The largest share of entries that are malformed or repeat a key (of which
            the first counts).
        overwrite: Whether to replace a run at `out`.
        progress: See `Progress`.

    Raises:
        ConfigError: There is no such file, or `out` is in use.
        BadInputError: The file cannot be read or has too many bad entries, or the pool lacks too
            many of its pairs, or all.
        DamagedError: The file differs from the `.sha256` beside it, or changed while it was read;
            or the pool is damaged.
        ResourceError: The disk is full, or another process writes this run.
    """
    for name, ratio in (("missing", max_missing_ratio), ("reject", max_reject_ratio)):
        if not 0.0 <= ratio <= 1.0:
            raise ConfigError(f"--max-{name}-ratio is {ratio:g}; it is a share, from 0 to 1")
    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    before = file.stat()
    check_sums(file)
    settings = {
        "imported_counts": str(file.resolve()),
        "imported_sha256": file_sha256(file),
        "pool": pool.named,
        "pool_fingerprint": pool.fingerprint,
        "max_missing_ratio": max_missing_ratio,
        "max_reject_ratio": max_reject_ratio,
    }
    Run.check_free(out, overwrite=overwrite)
    with (
        writer_lock(out.absolute()),
        Run.create_whole(
            out, config=settings, environment=describe_environment(), overwrite=overwrite
        ) as run,
        open_staging(run.path / "staging") as sql,
    ):
        num_entries = _stage(sql, file, max_reject_ratio, progress)
        after = file.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DamagedError(f"{file} changed while it was read; import it again")
        progress("matching", 0, pool.num_pairs)
        num_missing = _match(sql, file, pool, max_missing_ratio)
        sql.execute("SET VARIABLE pool = ?", [pool.name])
        num_pairs, num_uses = _commit(sql, run, progress)
        reasons = sql.execute("SELECT reason, count(*) FROM rejects GROUP BY ALL ORDER BY ALL")
        rejects = {str(reason): int(count) for reason, count in reasons.fetchall()}
    return ImportedCounts(Run(out), num_entries, num_pairs, num_uses, num_missing, rejects)


def _stage(sql: Connection, file: Path, max_reject_ratio: float, progress: Progress) -> int:
    """Make the tables `entries` (each key once) and `rejects`; return the number of entries."""
    for name, schema in (("entries", ENTRY_SCHEMA), ("rejects", REJECT_SCHEMA)):
        _insert(sql, f"CREATE TABLE {name} AS", schema.empty_table())
    num_entries = 0
    num_bytes = file.stat().st_size
    for batch in read_counts(file):
        _insert(sql, "INSERT INTO entries", batch.entries)
        if len(batch.rejects):
            _insert(sql, "INSERT INTO rejects", batch.rejects)
        num_entries += batch.num_entries
        progress("reading", batch.num_bytes, num_bytes)
    sql.execute(_REPEATS)
    sql.execute("INSERT INTO rejects FROM repeats")
    sql.execute("DELETE FROM entries WHERE entry IN (SELECT entry FROM repeats)")
    bad = count_rows(sql, "rejects")
    if not num_entries:
        raise BadInputError(f"{file} has no entry, so there is nothing to import")
    is_over = RejectLimit(max_ratio=max_reject_ratio).is_exceeded(bad, num_seen=num_entries)
    if is_over or bad == num_entries:
        raise BadInputError(
            f"{file}: {bad:,} of {num_entries:,} entries are no pair key with a count, more than "
            f"--max-reject-ratio {max_reject_ratio:g}; {_top_reasons(sql)}"
        )
    return num_entries


def _match(sql: Connection, file: Path, pool: Pool, max_missing_ratio: float) -> int:
    """Make the table `found`, add missing pairs to `rejects`, and return how many are missing."""
    create_places(sql, pool)
    sql.execute(_FOUND)
    num_entries, num_found = count_rows(sql, "entries"), count_rows(sql, "found")
    num_missing = num_entries - num_found
    if num_missing:
        sql.execute(_MISSING)
    if num_missing > max_missing_ratio * num_entries or not num_found:
        lacking = _examples(
            sql, "SELECT pair_key FROM rejects WHERE reason = 'not_in_pool' ORDER BY entry"
        )
        having = _examples(sql, "SELECT pair_key FROM places")
        advice = (
            "is it the pool that the counts are about, and are its image ids written alike "
            "(YFCC's have 8 digits, with zeros in front)?"
        )
        if num_found:
            advice += f" To import the {num_found:,} that it has: --max-missing-ratio 1"
        raise BadInputError(
            f"{pool.location} lacks {num_missing:,} of the {num_entries:,} pairs of {file}, as "
            f"{lacking} (it has {having}); {advice}"
        )
    return num_missing


def _commit(sql: Connection, run: Run, progress: Progress) -> tuple[int, int]:
    """Write the ledger of the only outer step; return its pairs and their uses."""
    ((num_pairs, num_uses),) = sql.execute(
        "SELECT count(*), CAST(sum(count) AS VARCHAR) FROM found"
    ).fetchall()
    done = 0

    def counted(batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal done
        done += len(batch)
        progress("writing", done, 2 * num_pairs)
        return batch

    def write(table: str, query: str) -> FileEntry:
        # Closed before the database, which would wait for it.
        with sql.sql(query).to_arrow_reader(BATCH_ROWS) as reader:
            return run.write_batches(table, map(counted, reader), outer_step=0, lane=0)  # type: ignore[arg-type]

    rounds = pa.Table.from_pylist([_round(num_pairs)], schema=SCHEMAS["rounds"])
    files = (
        write("selections", _SELECTIONS),
        run.write_table("rounds", rounds, outer_step=0, lane=0),
        write("used", _USED),
        write("rejects", _REJECTS),
    )
    run.commit(Commit(outer_step=0, update=0, cursors=(PoolCursor(),), files=files))
    return num_pairs, int(num_uses)


def _round(num_pairs: int) -> dict[str, object]:
    """The `rounds` row, in which no caption was scanned and no rule applied."""
    return {
        "outer_step": 0,
        "lane": 0,
        "update": 0,
        "scanned": 0,
        "kept": num_pairs,
        "selected": num_pairs,
        "threshold": None,
        "min_ratio": None,
        "best_similarity": None,
        "pool_passes": 0.0,
        "histogram": [0] * HISTOGRAM_BINS,
        "pools": [],
    }


def _insert(sql: Connection, verb: str, table: pa.Table) -> None:
    sql.register("batch", table)
    sql.execute(f"{verb} FROM batch")
    sql.unregister("batch")


def _examples(sql: Connection, query: str) -> str:
    return ", ".join(str(key) for (key,) in sql.execute(f"{query} LIMIT 3").fetchall())


def _top_reasons(sql: Connection) -> str:
    """The reasons, the most frequent first, each with its first entry."""
    rows = sql.execute(
        "SELECT reason, count(*) AS rows, arg_min(detail, entry) FROM rejects "
        "GROUP BY reason ORDER BY rows DESC, reason"
    ).fetchall()
    listed = "; ".join(f"{reason} {count:,}, the first: {detail}" for reason, count, detail in rows)
    return f"{listed}; mend the file or raise the limit"
