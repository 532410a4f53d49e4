"""Looking up pair keys in a pool, out of core: DuckDB over its Parquet files, staged on disk."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import duckdb
import pyarrow as pa

from cit_curate.errors import DamagedError, ResourceError
from cit_curate.pool.pool import Pool
from cit_curate.storage.sql import (
    DISK_FULL_WORDS,
    STAGING_MEMORY,
    Connection,
    open_database,
    parquet,
)


@contextmanager
def open_staging(folder: Path) -> Iterator[Connection]:
    """A database on disk with bounded memory; its folder is removed afterwards.

    Raises:
        ResourceError: The disk is full, or memory runs out.
        DamagedError: A Parquet file cannot be read.
    """
    folder.mkdir()
    path, spill = folder / "staging.duckdb", folder / "spill"
    try:
        with open_database(path, spill=spill, keeps_order=False) as connection:
            yield connection
    # DuckDB's Arrow reader raises its errors as OSError or ArrowException.
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        explained = _explained(error, folder)
        if explained is None:
            raise
        raise explained from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def create_places(connection: Connection, pool: Pool) -> None:
    """Make the view `places`: place (row in the whole pool), pair_key, image_id, text_key."""
    first_rows = [0, *accumulate(part.file.rows for part in pool.parts)][:-1]
    connection.register(
        "numbered",
        pa.table(
            {
                "part": pa.array(range(len(first_rows)), pa.uint64()),
                "first_row": pa.array(first_rows, pa.int64()),
            }
        ),
    )
    connection.execute("CREATE TABLE parts AS FROM numbered")
    connection.unregister("numbered")
    pool.fetch()
    files = parquet([pool.path / part.file.path for part in pool.parts])
    connection.execute(
        "CREATE VIEW places AS SELECT first_row + file_row_number AS place, "  # noqa: S608
        "concat(image_id, '_', text_key) AS pair_key, image_id, text_key "
        # Extra columns stay inside, whatever they are called.
        f"FROM (SELECT image_id, text_key, file_row_number, file_index FROM {files}) "
        "JOIN parts ON part = file_index"
    )


def _explained(error: Exception, folder: Path) -> ResourceError | DamagedError | None:
    """The error with advice, or None if it is something else."""
    text = " ".join(str(error).split())
    if any(words in text.lower() for words in DISK_FULL_WORDS):
        free = shutil.disk_usage(folder.parent.parent).free
        return ResourceError(
            f"the disk of {folder.parent} is full, {free:,} bytes are free: {text}"
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return ResourceError(f"looking up pairs ran out of its {STAGING_MEMORY} of memory: {text}")
    if isinstance(error, duckdb.Error | pa.ArrowException) and ".parquet" in text:
        return DamagedError(f"a Parquet file cannot be read: {text}; see: cit pool verify")
    return None
