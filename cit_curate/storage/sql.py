"""The one door to DuckDB: opening a database, locking it, and writing names and files in SQL."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb

Connection = duckdb.DuckDBPyConnection

# Measured on 9 M pairs: 1 GB is no faster, and the process then peaks at 1.16 GB instead of 0.75.
STAGING_MEMORY = "512MB"
# What DuckDB and the system say where no more can be written.
DISK_FULL_WORDS = ("no space left", "file too large", "quota exceeded", "max_temp_directory_size")

# What keeps the SQL of somebody else from files, the network and the settings themselves.
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
    """Open a database of our own with bounded memory.

    Args:
        path: The file of the database; None = in memory.
        spill: The folder for what exceeds the memory.
        memory: The most memory, as DuckDB writes it.
        max_spill: The most disk for the spill folder; empty = DuckDB's default.
        max_threads: The most threads; 0 = one per core.
        keeps_order: Whether a plain scan gives rows in the order of their insertion.
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
    """Open a database that people open, too, with the settings that they have.

    Within a process DuckDB opens one file with one set of settings only.
    """
    return duckdb.connect(str(path), read_only=read_only)


def lock_down(connection: Connection, readable: Iterable[str]) -> None:
    """Let a connection read some files and nothing else from now on: no network, no setting.

    Args:
        connection: An open connection; its views exist already.
        readable: Paths and patterns of the files.
    """
    for setting in (f"allowed_paths = {sql_list(readable)}", *_LOCKS):
        connection.execute(f"SET {setting}")


def parquet(paths: Sequence[Path], *options: str) -> str:
    """The rows of Parquet files, as SQL writes them after FROM."""
    # Without the flag, a folder of the path like `step=000001` would become a column.
    settings = ", ".join(["hive_partitioning = false", *options])
    return f"read_parquet({sql_list(map(exact_pattern, paths))}, {settings})"


def exact_pattern(path: Path) -> str:
    """A path as DuckDB's glob for exactly this file: `run[1]` is a folder's name, too."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path.absolute()))


def sql_list(values: Iterable[str]) -> str:
    """A list of texts, as SQL writes it."""
    return f"[{', '.join(map(literal, values))}]"


def literal(value: str) -> str:
    """A text, as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """The name of a column or a table, as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'
