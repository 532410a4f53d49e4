"""Reader of CSV and TSV files, with a reject for every malformed record."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import pyarrow as pa

from cit_curate.captions import replace_bad_text, shown_text
from cit_curate.config import READ_AS_FOUND, ReadConfig
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import (
    Note,
    Problem,
    ReadLog,
    SourceReader,
    SourceRows,
    batches_of,
)
from cit_curate.sources.text.files import TextLines, text_lines
from cit_curate.sources.text.quotes import TableFormat

DELIMITERS = {"csv": ",", "tsv": "\t"}
_OTHER_DELIMITERS = (",", ";", "\t", "|")
DELIMITER_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar", " ": "a blank"}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_FILE = re.compile(r"[^\s]+\.[A-Za-z]{2,4}(#.*)?")
_CAPTION_WORDS = 4


@dataclass(frozen=True)
class Table:
    """How a CSV or TSV file is read.

    Attributes:
        lines: The lines of the file.
        format: How they are read as cells.
        header: The names of the columns.
        has_header: Whether the first record is the header.
        notes: A sentence for each guess.
    """

    lines: TextLines
    format: TableFormat
    header: tuple[str, ...]
    has_header: bool
    notes: tuple[str, ...] = ()


def open_table(
    path: Path,
    columns: Columns,
    kind: str,
    reading: ReadConfig = READ_AS_FOUND,
) -> SourceReader:
    """Open a CSV or TSV file.

    Args:
        path: The file, plain or compressed (`text.files`).
        columns: The columns to read.
        kind: `csv` or `tsv`.
        reading: How to read it.

    Raises:
        ConfigError: A chosen column is missing, or the encoding must be given.
        BadInputError: The file is empty.
        DamagedError: The file is compressed, and cut or damaged.
    """
    table = open_lines(path, columns, kind, reading)
    columns = columns.found_in(table.header, path, _first_line(table, columns))
    return SourceReader(
        columns=columns,
        extra_types={name: pa.string() for name in columns.extra},
        read=partial(_batches, table, columns),
        notes=table.notes,
    )


def open_lines(path: Path, columns: Columns, kind: str, reading: ReadConfig) -> Table:
    """How a file is read: its delimiter and its header; the errors are those of `open_table`."""
    lines = text_lines(path, reading.encoding)
    plain = DELIMITERS[kind]
    given = {"auto": plain, "tab": "\t"}.get(reading.delimiter, reading.delimiter)
    table = _with_header(lines, TableFormat(given, reading.quoting), reading.column_names)
    notes = [*lines.notes]
    if reading.delimiter == "auto" and not _has_columns(table, columns, reading):
        for other in _OTHER_DELIMITERS:
            format = replace(table.format, delimiter=other)
            candidate = _with_header(lines, format, reading.column_names)
            if other != given and _has_columns(candidate, columns, reading):
                table = candidate
                notes.append(
                    f"the delimiter is {DELIMITER_NAMES[other]} (guessed; --delimiter says which)"
                )
                break
    return replace(table, notes=tuple(notes))


def _with_header(lines: TextLines, format: TableFormat, names: Sequence[str]) -> Table:
    """The table whose header is the first record, or has the given names.

    Raises:
        BadInputError: There is no first record with a name.
    """
    first = next((cells for _, _, cells, _, _ in format.records(lines) if cells), None)
    if not first or (not names and not any(cell.strip() for cell in first)):
        raise BadInputError(
            f"{lines.path} has no header line; its first line must name the columns"
        )
    # Where blanks follow the delimiters of the header, they do in the rows.
    skips = len(first) > 1 and all(cell.startswith(" ") for cell in first[1:])
    header = tuple(names) or tuple(replace_bad_text(name)[0].strip() for name in first)
    num_columns = len(header)
    format = replace(format, skips_blanks=skips, num_columns=num_columns)
    return Table(lines, format, header, has_header=not names)


def _has_columns(table: Table, columns: Columns, reading: ReadConfig) -> bool:
    """Whether a table has all columns that were asked for, and as many cells as were named."""
    if reading.column_names:
        return len(_first_cells(table)) == len(table.header)
    asked = [name for name in (*columns.names, *columns.extra) if name != Columns().image_id]
    return len(table.header) > 1 and set(asked) <= set(table.header)


def _first_cells(table: Table) -> list[str]:
    records = table.format.records(table.lines)
    return next((cells for _, _, cells, _, _ in records if cells), [])


def _first_line(table: Table, columns: Columns) -> str:
    """Advice for a table whose first line is no header, or "".

    Raises:
        ConfigError: `--columns` has another number of names than the first line has cells.
    """
    if not table.has_header:
        cells = _first_cells(table)
        if len(cells) != len(table.header):
            raise ConfigError(
                f"--columns has {len(table.header)} names, but line 1 of {table.lines.path} has "
                f"{len(cells)} cells: {', '.join(map(shown_text, cells))}; name every column, and "
                "see --delimiter"
            )
        return ""
    names = names_for_data(table.header)
    if not names or {*columns.names, *columns.extra} & set(table.header):
        return ""
    return (
        "line 1 looks like data; if there is no header line, name the columns, such as --columns "
        f"{','.join(names)}"
    )


def names_for_data(cells: Sequence[str]) -> tuple[str, ...]:
    """Names for the columns of a first line that looks like data; empty for a header.

    A caption, an address, a number or a file is data.
    """
    guessed = [_guessed_name(cell.strip()) for cell in cells]
    if not any(guessed):
        return ()
    names: list[str] = []
    for number, name in enumerate(guessed, 1):
        names.append(f"{name or 'column'}{number}" if not name or name in names else name)
    return tuple(names)


def _guessed_name(cell: str) -> str:
    """A name for the column of a cell that is no column name; "" for one that may be."""
    if _ADDRESS.match(cell):
        return "url"
    if len(cell.split()) >= _CAPTION_WORDS:
        return "caption"
    if _NUMBER.fullmatch(cell):
        return "id"
    return "image" if _FILE.fullmatch(cell) else ""


def _batches(table: Table, columns: Columns) -> Iterator[SourceRows]:
    log = ReadLog()
    return batches_of(_read(table, columns, log), columns, log)


def _read(
    table: Table, columns: Columns, log: ReadLog
) -> Iterator[tuple[int, Sequence[str | None] | Problem]]:
    """The records; all lines of the file are theirs, or counted in the log.

    Raises:
        AssertionError: Lines were lost; a bug in this module.
    """
    names = (*columns.names, *columns.extra)
    # A getter of a single column would return a bare cell, so the first name is repeated.
    chosen = itemgetter(*map(table.header.index, (*names, names[0])))
    num_columns = len(table.header)
    is_header = table.has_header
    num_lines = 0
    for line, spanned, cells, problem, is_mended in table.format.records(table.lines):
        num_lines += spanned
        if cells == []:
            log.counts["blank_lines"] += 1
        elif is_header:
            log.counts["header_lines"] += spanned
            is_header = False
        elif cells is None:
            yield line, Problem("bad_row", problem, spanned)
        elif len(cells) != num_columns:
            detail = f"{len(cells)} columns where the header has {num_columns}"
            yield line, Problem("column_count", detail, spanned)
        else:
            if spanned > 1:
                log.notes.append(Note(line, "spanning_lines", "", spanned))
            if is_mended:
                log.notes.append(Note(line, "mended_quotes", cells[0]))
            yield line, chosen(cells)[:-1]
    log.counts["lines"] += num_lines
    assert num_lines == table.lines.num_lines, (
        f"{table.lines.path}: {num_lines:,} of {table.lines.num_lines:,} lines were read"
    )
