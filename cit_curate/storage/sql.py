"""All uses of DuckDB: opening and locking databases, and quoting names and files for SQL."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb

Connection = duckdb.DuckDBPyConnection

# Measured on 9 M pairs: 1 GB is no faster, and the process peaks at 1.16 GB instead of 0.75 GB.
STAGING_MEMORY = "512MB"
# In the messages of DuckDB and of the system when no more can be written.
DISK_FULL_WORDS = ("no space left", "file too large", "quota exceeded", "max_temp_directory_size")

# Keep untrusted SQL from files, the network and these settings.
_LOCKS = (
    "python_enable_replacements = false",
    "allow_community_extensions = false",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "allow_persistent_secrets = false",
    "enable_external_access = false",
    "lock_configuration = true",
)


def open_database(
    path: Path | None,
    *,
    spill: Path,
    memory: str = STAGING_MEMORY,
    max_spill: str = "",
    max_threads: int = 0,
    keeps_order: bool = True,
) -> Connection:
    """Open a private database with bounded memory.

    Args:
        path: The file of the database; None = in memory.
        spill: The folder for what exceeds the memory.
        memory: The memory limit, as DuckDB writes it.
        max_spill: The disk limit of the spill folder; empty = DuckDB's default.
        max_threads: The most threads; 0 = one per core.
        keeps_order: Whether a plain scan returns rows in insertion order.
    """
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        "temp_directory": str(spill),
        "preserve_insertion_order": keeps_order,
        "autoinstall_known_extensions": False,
    }
    if max_spill:
        settings["max_temp_directory_size"] = max_spill
    if max_threads:
        settings["threads"] = min(max_threads, os.cpu_count() or 1)
    return duckdb.connect(":memory:" if path is None else str(path), config=settings)


def open_shared(path: Path, *, read_only: bool = False) -> Connection:
    """Open a database that users open too, with DuckDB's default settings.

    Within a process, DuckDB opens a file with one set of settings only.
    """
    return duckdb.connect(str(path), read_only=read_only)


def lock_down(connection: Connection, readable: Iterable[str]) -> None:
    """Restrict a connection to reading some files: no network, no change of settings.

    Args:
        connection: An open connection whose views already exist.
        readable: The paths and patterns of these files.
    """
    for setting in (f"allowed_paths = {sql_list(readable)}", *_LOCKS):
        connection.execute(f"SET {setting}")


def count_rows(connection: Connection, table: str) -> int:
    """The number of rows of a table or a view, whose name is ours."""
    ((count,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()  # noqa: S608
    return int(count)


def parquet(paths: Sequence[Path], *options: str) -> str:
    """The rows of Parquet files, as an SQL expression to put after FROM."""
    # Otherwise a folder such as `step=000001` in the path would become a column.
    settings = ", ".join(["hive_partitioning = false", *options])
    return f"read_parquet({sql_list(map(exact_pattern, paths))}, {settings})"


def exact_pattern(path: Path) -> str:
    """A DuckDB glob that matches exactly this path: a folder may be called `run[1]`."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path.absolute()))


def sql_list(values: Iterable[str]) -> str:
    """A list of string literals in SQL."""
    return f"[{', '.join(map(literal, values))}]"


def literal(value: str) -> str:
    """A string literal in SQL."""
    return "'" + value.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """The quoted name of a column or a table in SQL."""
    return '"' + name.replace('"', '""') + '"'
