"""The printed result of a query: a table for a person, or CSV."""

import sys
from typing import Any

import pyarrow as pa
from rich.console import JustifyMethod
from rich.table import Table

from cit_curate.config import CsvGuard
from cit_curate.csv_cells import GUARDED, csv_line, csv_text, needs_guards, with_guards
from cit_curate.errors import ConfigError
from cit_curate.terminal import add_row, draw, inert, print_line, printable

SHOWN_ROWS = 100


def print_table(table: pa.Table) -> None:
    """Print the first rows as a table."""
    shown = table.slice(0, SHOWN_ROWS)
    drawn = Table(header_style="bold")
    for field in table.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        justify: JustifyMethod = "right" if number else "left"
        drawn.add_column(inert(field.name), justify=justify)
    columns = [python_values(column) for column in shown.columns]
    for row in zip(*columns, strict=True):
        add_row(drawn, *map(_cell, row))
    rest = "; --csv, --json and --parquet FILE give all" if len(table) > len(shown) else ""
    rows = f"{len(shown):,} of {len(table):,} rows" if rest else f"{len(table):,} rows"
    draw(drawn)
    print_line(f"{rows}{rest}")


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def print_csv(table: pa.Table, *, guard: CsvGuard = "formulas") -> None:
    """Print all rows as CSV.

    With the guard `formulas`, a text that a spreadsheet would run gets a `'` in front; where there
    is one, the last column `guarded` says in which cells (`cit_curate.csv_cells`).

    Raises:
        ConfigError: There is such a text, and the result has a column `guarded` already.
    """
    # A terminal would obey control characters; a file or a pipe gets the text unchanged.
    clean = printable if sys.stdout.isatty() else str
    names = [clean(name) for name in table.schema.names]
    is_guarded = guard != "off" and any(
        needs_guards(python_values(column))
        for column in table.columns
        if not pa.types.is_primitive(column.type)
    )
    if is_guarded and GUARDED in names:
        raise ConfigError(
            f"the result has a column {GUARDED!r} of its own and texts that a spreadsheet would "
            f"run; name the column otherwise (SELECT {GUARDED} AS …), or give --csv-guard off"
        )
    header = names if guard == "off" else [csv_text(name) for name in names]
    sys.stdout.write(csv_line([*header, *([GUARDED] if is_guarded else [])]))
    for batch in table.to_batches():
        for row in zip(*map(python_values, batch.columns), strict=True):
            cells = [clean(value) if isinstance(value, str) else value for value in row]
            sys.stdout.write(csv_line(with_guards(names, cells) if is_guarded else cells))


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column as Python objects; times that Python does not hold are text.

    These are nanoseconds, for which Arrow needs pandas, and years beyond 9999.
    """
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        values = column.cast(_times_as_text(column.type)).to_pylist()
    return values


def _times_as_text(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_map(kind):
        return pa.map_(_times_as_text(kind.key_type), _times_as_text(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _times_as_text(field.type)) for field in kind])
    return pa.list_(_times_as_text(kind.value_type)) if pa.types.is_list(kind) else kind


def unique_names(table: pa.Table) -> pa.Table:
    """The table with distinct column names: in SELECT 1 AS a, 2 AS a the second becomes a_1."""
    names: list[str] = []
    for name in table.schema.names:
        unique, number = name, 0
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return table.rename_columns(names)
