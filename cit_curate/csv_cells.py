"""CSV that is safe to open in a spreadsheet, and that our own readers take back exactly.

A cell that a spreadsheet would run as a formula gets a `'` in front. Where there is one, a last
column `guarded` names the columns of each row in which that was done, so a reader takes off what
was put on and nothing else.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote

GUARDED = "guarded"

# The characters at which a spreadsheet reads a text cell as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_PLAIN_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_IS_QUOTED = re.compile('[",\r\n]')


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would run a text; a plain number (`-12`, `+3`, `-7.5e3`) is none."""
    return text.startswith(_FORMULA_STARTS) and not _PLAIN_NUMBER.fullmatch(text)


def csv_text(value: object) -> object:
    """A CSV cell: a text that is a formula (`is_formula`) gets a `'` in front."""
    return f"'{value}" if isinstance(value, str) and is_formula(value) else value


def needs_guards(row: Iterable[object]) -> bool:
    """Whether a row has a formula, or a text that looks like a guarded one."""
    return any(isinstance(value, str) and is_formula(value.lstrip("'")) for value in row)


def with_guards(names: Sequence[str], row: Sequence[object]) -> list[object]:
    """A row with its cells guarded, and the cell of the column `guarded` after them.

    Args:
        names: The names of the columns.
        row: The values of the row.
    """
    cells = [csv_text(value) for value in row]
    guarded = (
        _escaped(name)
        for name, cell, value in zip(names, cells, row, strict=True)
        if cell is not value
    )
    return [*cells, " ".join(guarded)]


def is_exported(header: Sequence[str]) -> bool:
    """Whether a table is one of ours: its quotes are those of `csv_line`, and none is stray."""
    return GUARDED in header or {"pair_key", "image_id", "text_key", "count"} <= {*header}


def guard_remover(header: Sequence[str]) -> Callable[[list[str]], None] | None:
    """A function that takes the guards off a row of a CSV file, in place.

    A row whose `guarded` cell names no columns, or guards that are not there, is left alone: the
    column is then a user's own.

    Args:
        header: The names of the file's columns.

    Returns:
        None for a file without a column `guarded`.
    """
    if GUARDED not in header:
        return None
    own = header.index(GUARDED)
    columns = {_escaped(name): number for number, name in enumerate(header)}

    def remove(row: list[str]) -> None:
        chosen = [columns.get(name, own) for name in row[own].split(" ")] if row[own] else ()
        if all(number != own and _is_guarded(row[number]) for number in chosen):
            for number in chosen:
                row[number] = row[number][1:]

    return remove


def csv_line(cells: Iterable[object]) -> str:
    """A line of CSV (RFC 4180) with a newline at its end; None is an empty cell.

    Before Python 3.13, `csv.writer` leaves a carriage return unquoted, where readers end the row.
    """
    texts = ["" if cell is None else str(cell) for cell in cells]
    quoted = [
        '"' + text.replace('"', '""') + '"' if _IS_QUOTED.search(text) else text for text in texts
    ]
    # A single empty cell must not look like a blank line.
    return (",".join(quoted) or '""') + "\n"


def _is_guarded(cell: str) -> bool:
    return cell.startswith("'") and is_formula(cell[1:])


def _escaped(name: str) -> str:
    """A column's name without blanks, and without a character at which a formula starts."""
    return quote(name, safe="").replace("-", "%2D")
