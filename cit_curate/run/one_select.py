"""A person's SQL, checked before it runs: one SELECT, over the run's views and nothing else.

DuckDB's own sandbox (see `query.py`) already blocks files and the network. This check comes first,
and its messages list the names that exist. It reads the syntax tree that DuckDB prints with
`json_serialize_sql`, so a comment, a cast or odd spacing cannot hide a name. Both guard against
accidents and pasted SQL; neither makes DuckDB a server for strangers.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb

from cit_curate.errors import QueryError

MAX_SQL_CHARACTERS = 100_000

TABLE_FUNCTIONS = frozenset({"range", "generate_series", "unnest", "repeat", "json_each"})

# Scalar functions that read settings, wait, write to the log, or run SQL of their own.
_REFUSED_FUNCTIONS = frozenset(
    {"current_setting", "getenv", "getvariable", "nextval", "currval", "setval", "setseed"}
    | {"write_log", "sleep_ms", "query", "query_table", "current_query", "current_schemas"}
    | {"current_connection_id", "current_query_id", "current_transaction_id", "txid_current"}
)
_REFUSED_PREFIXES = ("duckdb_", "pragma_", "pg_", "read_", "parquet_", "json_execute", "which_")

# Anything else (INSERT, DELETE … RETURNING inside a WITH) changes tables.
_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_LISTINGS = frozenset({'"tables"'})

_NAME = re.compile(r"\w+")


def check_select(connection: duckdb.DuckDBPyConnection, sql: str, views: Sequence[str]) -> str:
    """Check that `sql` is one SELECT over the views, and return it.

    DuckDB counts `FROM view`, `VALUES`, `DESCRIBE view`, `SUMMARIZE view` and `SHOW TABLES` as
    SELECT, too.

    Args:
        connection: The connection that parses the SQL; the statement is not run.
        sql: The SQL that a person typed.
        views: The names of the tables that it may read.

    Raises:
        QueryError: It does not parse, is not exactly one SELECT, or reads something else.
    """
    if len(sql) > MAX_SQL_CHARACTERS:
        raise QueryError(f"the SQL has {len(sql):,} characters; {MAX_SQL_CHARACTERS:,} is the most")
    try:
        sql.encode()
        statements = connection.extract_statements(sql)
    except UnicodeEncodeError:
        raise QueryError("the SQL is not valid UTF-8 text") from None
    except duckdb.Error as error:
        raise QueryError(f"the SQL does not parse: {short_message(error)}") from None
    if len(statements) != 1:
        raise QueryError(f"the SQL has {len(statements)} statements; write exactly one SELECT")
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        raise QueryError(
            f"the SQL is a {kind.name} statement; only one SELECT runs, and it reads "
            f"{', '.join(views)} (a PIVOT needs its values spelled out with IN)"
        )
    _check_tree(_syntax_tree(connection, sql), views)
    return statements[0].query


def short_message(error: Exception) -> str:
    """The start of a DuckDB message, without its candidates and its excerpt of the SQL."""
    head = str(error).split("\n\nLINE ")[0].split("\nLINE ")[0].split("Candidate")[0]
    text = " ".join(head.split())
    return text if len(text) <= 400 else f"{text[:397]}..."


def _syntax_tree(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    try:
        # fetchall, not fetchone: DuckDB 2.0 refuses the next query while a result is unfinished.
        rows = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchall()
        tree = json.loads(rows[0][0])
    except (duckdb.Error, RecursionError) as error:
        raise QueryError(f"the SQL cannot be checked: {short_message(error)}") from None
    if tree["error"]:
        raise QueryError(f"the SQL cannot be checked: {tree.get('error_message')}")
    return tree


def _check_tree(tree: Any, views: Sequence[str]) -> None:
    objects = list(_objects(tree))
    # Only plain names count: WITH "/etc/passwd" AS … must not allow a file of that name.
    local = {
        str(entry["key"]).lower()
        for node in objects
        for entry in node.get("cte_map", {}).get("map", [])
        if _NAME.fullmatch(str(entry["key"]))
    }
    readable = local | set(views)
    for node in objects:
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _NODES:
            raise QueryError(f"{kind.removesuffix('_NODE')} is refused: the SQL may only SELECT")
        if kind == "BASE_TABLE":
            _check_table(node, readable, views)
        elif kind == "SHOW_REF" and node.get("query") is None:
            if node.get("table_name") not in _LISTINGS:
                _check_table(node, readable, views)
        elif kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name")).lower()
            if name not in TABLE_FUNCTIONS:
                raise QueryError(
                    f"the table function {name} is refused: SQL reads no files; "
                    f"it may use {', '.join(sorted(TABLE_FUNCTIONS))}"
                )
        elif "function_name" in node:
            name = str(node["function_name"]).lower()
            if name in _REFUSED_FUNCTIONS or name.startswith(_REFUSED_PREFIXES):
                raise QueryError(f"the function {name} is refused: SQL reads no settings or files")


def _check_table(node: dict[str, Any], readable: set[str], views: Sequence[str]) -> None:
    parts = [node.get("catalog_name"), node.get("schema_name"), node.get("table_name")]
    name = ".".join(str(part) for part in parts if part)
    if name.lower() in readable:
        return
    if name.lower() == "pairs":
        raise QueryError(
            "the view pairs needs the run's pool, which is not where the run's configuration says; "
            "name it with --pool POOL"
        )
    raise QueryError(f"there is no table {name!r}; the SQL may read {', '.join(views)}")


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    pending = [tree]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
