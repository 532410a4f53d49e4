"""The names in a column of a CSV or TSV, with or without a header."""

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cit_curate.errors import ConfigError
from cit_curate.metadata.class_files.formats import refuse_other_formats
from cit_curate.metadata.class_files.plain_names import HEADER_WORDS, plain_names
from cit_curate.metadata.class_list import ClassList
from cit_curate.metadata.lines import parse_entries

TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".psv")

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
_OWN = {".tsv": "\t", ".tab": "\t", ".psv": "|"}


@dataclass(frozen=True)
class ClassTable:
    """A table, read as a whole.

    Attributes:
        path: The file.
        delimiter: The character between its cells.
        rows: (line, cells) of each row that is not blank, the header first; without the columns at
            the right that are empty throughout, and filled up with empty cells.
        is_even: Whether all rows have the same number of cells in the file.
    """

    path: Path
    delimiter: str
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    is_even: bool

    @property
    def header(self) -> tuple[str, ...]:
        """The cells of the first row, if there is one."""
        return self.rows[0][1] if self.rows else ()

    @property
    def has_header_word(self) -> bool:
        """Whether the first row has a word of `HEADER_WORDS`."""
        return any(cell.lower() in HEADER_WORDS for cell in self.header)

    def column(self, name: str, *, flag: str) -> list[tuple[int, str]]:
        """(line, cell) of each row below the header.

        Raises:
            ConfigError: There is no such column, or there are several.
        """
        if self.header.count(name) != 1:
            several = "several columns" if name in self.header else "no column"
            close = [] if name in self.header else difflib.get_close_matches(name, self.header, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{flag}: {self.path} has {several} {name!r}; it has {self.named_columns}{hint}"
            )
        at = self.header.index(name)
        return [(line, cells[at]) for line, cells in self.rows[1:]]

    @property
    def named_columns(self) -> str:
        """The names of the columns, for messages."""
        return ", ".join(cell or "(no name)" for cell in self.header) or "none"


def read_table(text: str, path: Path, columns: Sequence[str] = ()) -> ClassTable:
    """The table in a text, its cells between `,`, `;`, tabs or `|`.

    The delimiter is the first that gives all `columns`, else the first that splits every row into
    the same number of cells, the suffix's own before the others. `|` also stands between synonyms,
    so it needs a header word.

    Raises:
        ConfigError: A row has more cells than the first one, or a quote swallows rows.
    """
    own = _OWN.get(path.suffix.lower(), ",")
    first, _, below = text.partition("\n")
    if first.strip().lower()[:-1] == "sep=":  # Excel's first line
        own, text = first.strip()[-1], f"\n{below}"
    tables = [_parsed(text, path, mark) for mark in dict.fromkeys((own, *_DELIMITERS))]
    named = [table for table in tables if columns and {*columns} <= {*table.header}]
    even = [
        table
        for table in tables
        if len(table.header) > 1
        and table.is_even
        and (table.delimiter in (own, ",", ";", "\t") or table.has_header_word)
    ]
    table = (named or even or tables)[0]
    _check_rows(table, text)
    return table


def table_names(text: str, path: Path, column: str, *, flag: str) -> ClassList:
    """The names in a column of a table: the named one, or the only one.

    A cell is read like a line of a plain list, but never as a comment: `#1 fan` is a name. Without
    a named column, the first row is a header only if it is one of `HEADER_WORDS`.

    Raises:
        ConfigError: It is no table, lacks the column, or has several and none is named.
    """
    if not column:
        refuse_other_formats(text.splitlines(), path, is_table=True)
    table = read_table(text, path, [column] if column else [])
    if column:
        return _named(table.column(column, flag=flag), table)
    if len(table.header) > 1:
        numbered = _numbered(table)
        if numbered is None:
            raise several_columns(table, flag)
        return numbered
    cells = [(line, cells[0]) for line, cells in table.rows if cells]
    if table.has_header_word:
        return _named(cells[1:], table)
    names = plain_names([cell for _, cell in cells], path)
    return replace(names, notes=("no header: the first line is a class", *names.notes))


def several_columns(table: ClassTable, flag: str) -> ConfigError:
    """The error that asks for the column."""
    hint = (
        ""
        if table.has_header_word
        else "; without a header write one above it, or one name a line with synonyms after |"
    )
    with_flag = f" with {flag}" if flag else ""
    return ConfigError(
        f"{table.path}: name the column with the class names{with_flag}; it has "
        f"{table.named_columns}, between {_DELIMITERS.get(table.delimiter, table.delimiter)}{hint}"
    )


def _named(cells: Sequence[tuple[int, str]], table: ClassTable) -> ClassList:
    """The names below a header; their cells are taken as they are."""
    entries = tuple(parse_entries([cell for _, cell in cells], comments=False))
    empty = [line for line, cell in cells if not cell]
    what = "1 empty cell" if len(empty) == 1 else f"{len(empty):,} empty cells"
    notes = (f"{what} left out, the first in line {empty[0]}",) if empty else ()
    return ClassList(name=str(table.path), entries=entries, notes=notes)


def _numbered(table: ClassTable) -> ClassList | None:
    """The names beside running numbers or WordNet ids, in a table of two columns without header."""
    if len(table.header) != 2 or table.has_header_word:
        return None
    names = plain_names(["\t".join(cells) for _, cells in table.rows], table.path)
    return names if names.notes else None


def _parsed(text: str, path: Path, delimiter: str) -> ClassTable:
    rows: list[tuple[int, tuple[str, ...]]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    line = 0
    try:
        for cells in reader:
            rows.append((line + 1, tuple(cell.strip() for cell in cells)))
            line = reader.line_num
    except csv.Error as error:
        raise ConfigError(f"{path}, after line {line}: not a table: {error}") from error
    rows = [(line, cells) for line, cells in rows if any(cells)]
    is_even = len({len(cells) for _, cells in rows}) == 1
    width = max((at for _, cells in rows for at, cell in enumerate(cells, 1) if cell), default=0)
    header_width = len(rows[0][1]) if rows else 0
    width = min(width, header_width) if is_even else width
    filled = [
        (line, (*cells[:width], *[""] * (min(width, header_width) - len(cells))))
        for line, cells in rows
    ]
    return ClassTable(path, delimiter, tuple(filled), is_even)


def _check_rows(table: ClassTable, text: str) -> None:
    """Refuse a row with more cells than the header, and a quote that swallows rows.

    Raises:
        ConfigError: There is one; the message names its line.
    """
    width = len(table.header)
    lines = list(io.StringIO(text, newline=""))
    ends = [*[line for line, _ in table.rows[1:]], len(lines) + 1]
    for (line, cells), end in zip(table.rows, ends, strict=False):
        if len(cells) > width:
            raise ConfigError(
                f"{table.path}:{line}: {len(cells)} cells, and the first line has {width}; put "
                f"quotes around a name that holds {table.delimiter!r}"
            )
        literal = [each.count(table.delimiter) + 1 for each in lines[line - 1 : end - 1]
                   if each.strip()]  # fmt: skip
        if len(literal) > 1 and set(literal) == {width}:
            raise ConfigError(
                f"{table.path}:{line}: a quote opens here, and its cell goes on for "
                f"{len(literal)} lines; write it twice if it belongs to the name"
            )
