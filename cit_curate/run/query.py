"""SQL over a run: its ledger and its pool as views of an in-memory DuckDB.

The views read the Parquet files that the run's manifests name, and nothing else: the connection may
open exactly these files, and its settings are locked before a person's SQL reaches it. A run that
is not finished shows the outer steps that were committed when the database was opened.
"""

import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import duckdb
import pyarrow as pa

from cit_curate.carried import sql_name
from cit_curate.config import QUERY_MAX_ROWS, QUERY_TIMEOUT_SECONDS
from cit_curate.errors import DamagedError, QueryError, ResourceError
from cit_curate.pool.mixture import PoolMixture
from cit_curate.run.ledger_tables import LEDGER_TABLES, POOL_COUNTS, RECALL, SCHEMAS, LedgerTable
from cit_curate.run.one_select import check_select, short_message
from cit_curate.storage.durable import FileEntry, check_file
from cit_curate.storage.sql import (
    exact_pattern,
    identifier,
    literal,
    lock_down,
    open_database,
    parquet,
)

MEMORY_LIMIT = "2GB"
SPILL_LIMIT = "20GB"
MAX_THREADS = 4
BATCH_ROWS = 10_000
# The batches of results that are written to files.
EXPORT_BATCH_ROWS = 65_536

# The limit of a person's query, whose result is in memory as a whole.
MAX_RESULT_BYTES = 1 << 30

_SQL_TYPES = {
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.list_(pa.int64()): "BIGINT[]",
    pa.list_(POOL_COUNTS): "STRUCT(pool VARCHAR, scanned BIGINT, kept BIGINT, selected BIGINT)[]",
    pa.list_(RECALL): (
        "STRUCT(reason VARCHAR, kept BIGINT, missed DOUBLE, estimate DOUBLE, low DOUBLE, "
        "high DOUBLE)[]"
    ),
}

# A text key is ASCII without `_`, so its length splits a pair key into its halves.
_COUNTS_VIEW = """
CREATE VIEW counts AS
SELECT {keys},
       left(pair_key, length(pair_key) - length(split_part(pair_key, '_', -1)) - 1) AS image_id,
       split_part(pair_key, '_', -1) AS text_key,
       count
FROM (SELECT {keys}, CAST({count} AS BIGINT) AS count FROM {table} GROUP BY {keys})
"""


class PairFile(Protocol):
    """A part of a pool."""

    @property
    def file(self) -> FileEntry:
        """The Parquet file, relative to the pool folder."""


class PairSource(Protocol):
    """A pool, as far as SQL needs it, such as `cit_curate.pool.Pool`."""

    @property
    def path(self) -> Path:
        """The pool folder."""

    @property
    def location(self) -> str:
        """The folder or URL of the pool, for messages."""

    @property
    def parts(self) -> Sequence[PairFile]:
        """The parts of the pool, in order."""


class ImageSource(PairSource, Protocol):
    """A pool whose images can be opened."""

    def image_bytes(self, image_uri: str, source: str) -> bytes:
        """The bytes of an image; raises ImageRejected when they cannot be read."""


class RunDatabase:
    """The views selections, near_misses, rounds, used, rejects, counts and, with a pool, pairs.

    In a run of several pools a pair is identified by pool and key, so counts and pairs have the
    column `pool`, too. `Run.database` opens one.

    Attributes:
        views: The names of the views.
        pool_sql: The SQL expression for the pool of a row; `''` in a run of one pool.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[FileEntry],
        pool: PairSource | PoolMixture | None = None,
        *,
        has_several_pools: bool = False,
    ) -> None:
        """Make the views of a run.

        Args:
            folder: The run folder.
            files: The files of the committed outer steps, in order, in the folders of their tables.
            pool: The pool or mixture whose pairs are shown.
            has_several_pools: Whether the run was made from a mixture.
        """
        self.views: tuple[str, ...] = (*LEDGER_TABLES, "counts")
        self.pool_sql = "pool" if has_several_pools else "''"
        self._spill = Path(tempfile.mkdtemp(prefix="cit-query-"))
        self._connection = open_database(
            None,
            spill=self._spill,
            memory=MEMORY_LIMIT,
            max_spill=SPILL_LIMIT,
            max_threads=MAX_THREADS,
        )
        try:
            self._create_views(folder, files, _by_name(pool))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RunDatabase":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory and remove the spill folder."""
        self._connection.close()
        shutil.rmtree(self._spill, ignore_errors=True)

    def query(
        self,
        sql: str,
        *,
        timeout_seconds: float = QUERY_TIMEOUT_SECONDS,
        max_rows: int = QUERY_MAX_ROWS,
    ) -> pa.Table:
        """The result of a person's SQL.

        Raises:
            QueryError: It is not one SELECT over the views, or DuckDB refuses it.
            ResourceError: It takes longer than `timeout_seconds` or more memory than the limit, or
                returns more than `max_rows` rows or `MAX_RESULT_BYTES` bytes.
            DamagedError: A file of the run or the pool cannot be read.
        """
        statement = check_select(self._connection, sql, self.views)
        batches = []
        num_rows = num_bytes = 0
        with self._time_limit(timeout_seconds), self._named_errors():
            reader = self._connection.sql(statement).to_arrow_reader(BATCH_ROWS)
            for batch in reader:
                batches.append(batch)
                num_rows += len(batch)
                num_bytes += batch.nbytes
                if num_bytes > MAX_RESULT_BYTES:
                    raise ResourceError(
                        f"the query returns more than {MAX_RESULT_BYTES:,} bytes; add a LIMIT, "
                        "aggregate, or choose fewer columns"
                    )
                if num_rows > max_rows:
                    raise ResourceError(
                        f"the query returns more than {max_rows:,} rows; add a LIMIT, aggregate, "
                        "or allow more with --max-rows"
                    )
            return pa.Table.from_batches(batches, schema=reader.schema)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of our own SQL, unchecked; for results that are small by construction."""
        with self._named_errors():
            table = self._connection.sql(sql, params=list(parameters)).to_arrow_table()
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def batches(self, sql: str, batch_rows: int = BATCH_ROWS) -> Generator[pa.RecordBatch]:
        """The result of our own SQL, unchecked, batch by batch; at least one, maybe empty."""
        # A cursor of its own, so that other queries may run while this result is read.
        with self._named_errors(), self._connection.cursor() as cursor:
            reader = cursor.sql(sql).to_arrow_reader(batch_rows)
            num_batches = 0
            for batch in reader:
                yield batch
                num_batches += 1
            if not num_batches:
                yield pa.RecordBatch.from_pylist([], schema=reader.schema)

    def _create_views(
        self, folder: Path, files: Sequence[FileEntry], pools: Mapping[str, PairSource]
    ) -> None:
        sources: dict[str, list[Path]] = {
            table: [
                check_file(folder, entry, full=False)
                for entry in files
                if entry.path.startswith(f"{table}/")
            ]
            for table in LEDGER_TABLES
        }
        pairs = {
            name: [check_file(pool.path, part.file, full=False) for part in pool.parts]
            for name, pool in pools.items()
        }
        if pools:
            sources["pairs"] = [path for paths in pairs.values() for path in paths]
            self.views = (*self.views, "pairs")
        readable = [path.absolute() for paths in sources.values() for path in paths]
        with self._named_errors():
            for table in LEDGER_TABLES:
                self._connection.execute(self._ledger_view(table, sources[table]))
            self._connection.execute(self._counts_view(files))
            if pools and self.pool_sql == "pool":
                self._connection.execute(self._mixed_pairs_view(pairs))
            elif pools:
                self._connection.execute(_pairs_view(sources["pairs"]))
            lock_down(self._connection, [*map(str, readable), *map(exact_pattern, readable)])

    def _counts_view(self, files: Sequence[FileEntry]) -> str:
        was_used = any(entry.rows for entry in files if entry.path.startswith("used/"))
        table, count = ("used", "sum(times_used)") if was_used else ("selections", "count(*)")
        keys = "pair_key" if self.pool_sql == "''" else "pool, pair_key"
        return _COUNTS_VIEW.format(table=table, count=count, keys=keys)

    def _ledger_view(self, table: LedgerTable, paths: Sequence[Path]) -> str:
        if not paths:
            columns = ", ".join(_null(field) for field in SCHEMAS[table])
            return f"CREATE VIEW {table} AS SELECT {columns} WHERE false"
        scan = parquet(paths)
        # A run is only resumed by newer versions, so every file has the columns of the first.
        if self._lacking(table, parquet(paths[:1])):
            scan = parquet(paths, "union_by_name = true")
        nulls = "".join(f", {_null(field)}" for field in self._lacking(table, scan))
        return f"CREATE VIEW {table} AS SELECT *{nulls} FROM {scan}"  # noqa: S608 - our own names

    def _lacking(self, table: LedgerTable, scan: str) -> list[pa.Field]:
        """The columns of a ledger table that the files of an older version lack."""
        names = self._columns(scan)
        return [field for field in SCHEMAS[table] if field.name not in names]

    def _mixed_pairs_view(self, pairs: Mapping[str, Sequence[Path]]) -> str:
        selects = []
        for name, paths in pairs.items():
            scan = parquet(paths)
            # A pool may have a column `pool` of its own; here the name means the pool itself.
            is_own = "pool" in map(sql_name, self._columns(scan))
            others = "* EXCLUDE (pool)" if is_own else "*"
            key = "concat(image_id, '_', text_key) AS pair_key"
            selects.append(f"FROM {scan} SELECT {literal(name)} AS pool, {key}, {others}")
        return f"CREATE VIEW pairs AS {' UNION ALL BY NAME '.join(f'({s})' for s in selects)}"

    def _columns(self, scan: str) -> set[str]:
        rows = self._connection.execute(f"DESCRIBE FROM {scan}").fetchall()
        return {str(row[0]) for row in rows}

    @contextmanager
    def _time_limit(self, seconds: float) -> Iterator[None]:
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            self._connection.interrupt()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (QueryError, DamagedError):
            if not expired.is_set():
                raise
            raise ResourceError(
                f"the query was stopped after {seconds:g} seconds; narrow it with WHERE or LIMIT, "
                "or give it more time with --timeout-seconds"
            ) from None
        finally:
            timer.cancel()
            timer.join()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        # DuckDB's Arrow reader raises what pyarrow makes of its message: OSError, ArrowException.
        except (duckdb.Error, pa.ArrowException, OSError, RuntimeError) as error:
            message = short_message(error)
            # An error while reading batches loses its type, but not its message.
            if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory" in message:
                raise ResourceError(
                    f"the query needs more memory or spill space than it may use ({MEMORY_LIMIT}, "
                    f"{SPILL_LIMIT}): {message}; narrow it with WHERE, LIMIT or GROUP BY"
                ) from None
            if "No space left" in message:
                raise ResourceError(
                    f"the disk is full: {message}; free space in {self._spill}"
                ) from None
            if isinstance(error, duckdb.IOException) or ".parquet" in message:
                raise DamagedError(
                    f"a file of the run or its pool cannot be read: {message}"
                ) from None
            raise QueryError(f"DuckDB refuses the query: {message}") from None


def _by_name(pool: PairSource | PoolMixture | None) -> dict[str, PairSource]:
    """The pools whose pairs are shown, by their names in the ledger."""
    if pool is None:
        return {}
    if isinstance(pool, PoolMixture):
        return {each.name: each.pool for each in pool}
    return {"": pool}


def _null(field: pa.Field) -> str:
    return f"CAST(NULL AS {_SQL_TYPES[field.type]}) AS {identifier(field.name)}"


def _pairs_view(paths: Sequence[Path]) -> str:
    key = "concat(image_id, '_', text_key) AS pair_key"
    if paths:
        return f"CREATE VIEW pairs AS FROM {parquet(paths)} SELECT {key}, *"
    return (
        "CREATE VIEW pairs AS SELECT NULL::VARCHAR AS pair_key, NULL::VARCHAR AS image_id, "
        "NULL::VARCHAR AS text_key, NULL::VARCHAR AS caption, NULL::VARCHAR AS image_uri, "
        "NULL::VARCHAR AS source WHERE false"
    )
