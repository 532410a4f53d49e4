"""Reader of CSV and TSV files, quoted as in `csv`, with a reject for every malformed record."""

import csv
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Literal

import pyarrow as pa

from cit_curate.captions import replace_bad_text
from cit_curate.csv_cells import guard_remover
from cit_curate.errors import BadInputError
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import Problem, SourceReader, batches_of

MAX_FIELD_CHARS = 4 * 1024 * 1024

DELIMITERS: dict[Literal["csv", "tsv"], str] = {"csv": ",", "tsv": "\t"}


def open_table(path: Path, columns: Columns, kind: Literal["csv", "tsv"]) -> SourceReader:
    """Open a CSV or TSV file with a header line.

    The file is UTF-8 with or without a byte order mark. Other bytes are decoded as lone surrogates.

    Raises:
        ConfigError: A chosen column is missing.
        BadInputError: The file is empty.
    """
    first = next(_records(path, kind), None)
    header = [replace_bad_text(name)[0] for name in first[2] or ()] if first else []
    if not any(header):
        raise BadInputError(f"{path} has no header line; its first line must name the columns")
    columns.check(header, path)
    return SourceReader(
        columns=columns,
        extra_types={name: pa.string() for name in columns.extra},
        read=lambda: batches_of(_read(path, columns, kind, header), columns),
    )


def _read(
    path: Path, columns: Columns, kind: Literal["csv", "tsv"], header: list[str]
) -> Iterator[tuple[int, Sequence[str | None] | Problem]]:
    names = (*columns.names, *columns.extra)
    # A getter of a single column would return a bare cell, so the first name is repeated.
    chosen = itemgetter(*map(header.index, (*names, names[0])))
    num_columns = len(header)
    remove_guards = guard_remover(header)
    records = _records(path, kind)
    next(records)
    for line, problem, cells in records:
        if cells is None:
            yield line, Problem("bad_row", problem)
        elif len(cells) != num_columns:
            detail = f"{len(cells)} columns where the header has {num_columns}"
            yield line, Problem("column_count", detail)
        else:
            if remove_guards is not None:
                remove_guards(cells)
            yield line, chosen(cells)[:-1]


def _records(
    path: Path, kind: Literal["csv", "tsv"]
) -> Iterator[tuple[int, str, list[str] | None]]:
    """(first line, problem, cells) of each record that is not blank; cells None for malformed."""
    # This limit is a setting of the whole process. The default of 128 KiB loses long captions.
    csv.field_size_limit(MAX_FIELD_CHARS)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        # Without `strict`, a quote that is never closed silently swallows the rest of the file.
        reader = csv.reader(stream, delimiter=DELIMITERS[kind], strict=True)
        last_line = 0
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                problem = f"{error}; a field that starts with a quote must end with one"
                yield last_line + 1, problem, None
            else:
                if cells:
                    yield last_line + 1, "", cells
            last_line = reader.line_num
