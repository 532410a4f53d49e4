"""What commands print of a table or a summary: for a person, as CSV, as JSON."""

import csv as csv_format
import json as json_format
import math
import sys
from typing import TYPE_CHECKING, Any

from rich.console import JustifyMethod
from rich.table import Table

from cit_curate.terminal import add_row, draw, inert, print_line, printable

if TYPE_CHECKING:  # Arrow, which `--help` must not wait for
    import pyarrow as pa

SHOWN_ROWS = 100


def print_table(table: "pa.Table") -> None:
    """The first rows as a table of a terminal."""
    import pyarrow as pa

    shown = table.slice(0, SHOWN_ROWS)
    drawn = Table(header_style="bold")
    for field in table.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        justify: JustifyMethod = "right" if number else "left"
        drawn.add_column(inert(field.name), justify=justify)
    columns = [column.to_pylist() for column in shown.columns]
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


def print_csv(table: "pa.Table") -> None:
    """All rows as CSV."""
    from cit_curate.run.exports.export import csv_text

    # What a terminal would obey stays out of it; a file or a pipe gets the text as it is.
    clean = printable if sys.stdout.isatty() else str
    writer = csv_format.writer(sys.stdout, lineterminator="\n")
    writer.writerow([csv_text(clean(name)) for name in table.schema.names])
    for batch in table.to_batches():
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            writer.writerow(
                [csv_text(clean(value)) if isinstance(value, str) else value for value in row]
            )


def print_json(value: Any) -> None:
    """A value as JSON, where NaN and infinity are null."""
    sys.stdout.write(
        json_format.dumps(_plain(value), ensure_ascii=True, indent=1, default=str, allow_nan=False)
        + "\n"
    )


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def unique_names(table: "pa.Table") -> "pa.Table":
    """SELECT 1 AS a, 2 AS a has two columns of one name; the later ones become a_1, a_2."""
    names: list[str] = []
    for name in table.schema.names:
        unique, number = name, 0
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return table.rename_columns(names)


def show(summary: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """What a command has done: lines for a person, or one JSON object."""
    if as_json:
        print_json(summary)
    else:
        for line in lines:
            print_line(line)
