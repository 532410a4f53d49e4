"""Reader of JSON lines: one object a line, a reject for every line that is none."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from cit_curate.errors import BadInputError, DamagedError
from cit_curate.sources.columns import Columns
from cit_curate.sources.fields import FieldError, extra_texts, field_text, parse_object
from cit_curate.sources.rows import ROWS_PER_BATCH, Reject, SourceReader, SourceRows

MAX_LINE_BYTES = 16 * 1024 * 1024
# A chosen column must occur in one of these; most files have it in the first.
CHECKED_LINES = 100_000
_MAX_SHOWN_KEYS = 50


def open_jsonl(path: Path, columns: Columns) -> SourceReader:
    """Open a file of JSON objects, one a line, plain or compressed by gzip (`.gz`).

    A column is a key of the objects; where it is absent or null, the row has no such text. UTF-8
    with or without a byte order mark; bytes that are not UTF-8 arrive as lone surrogates.

    Raises:
        ConfigError: A chosen column occurs in none of the first 100,000 lines.
        BadInputError: No line is an object.
        DamagedError: The file is compressed and damaged.
    """
    columns.check(_keys(path, columns), path)
    return SourceReader(
        columns=columns,
        extra_types={name: pa.string() for name in columns.extra},
        read=lambda: _read(path, columns),
    )


def _keys(path: Path, columns: Columns) -> list[str]:
    """Keys in order of appearance, read until the chosen columns are all among them."""
    wanted = {*columns.names, *columns.extra}
    seen: dict[str, None] = {}
    for number, (_, line) in enumerate(_lines(path)):
        if number == CHECKED_LINES:
            break
        if line is None:
            continue
        try:
            keys = parse_object(line)
        except FieldError:
            continue
        seen |= {key: None for key in keys if key in wanted or len(seen) < _MAX_SHOWN_KEYS}
        if wanted <= seen.keys():
            break
    if not seen:
        raise BadInputError(f"{path}: none of its lines is a JSON object with keys")
    return list(seen)


def _read(path: Path, columns: Columns) -> Iterator[SourceRows]:
    lines = _lines(path)
    record = 0
    while True:
        first_record = record
        numbers: list[int] = []
        places: list[int] = []
        rows: list[dict[str, Any]] = []
        values: dict[str, list[str | None]] = {name: [] for name in columns.names}
        rejects: list[Reject] = []
        for number, line in lines:
            try:
                if line is None:
                    raise FieldError(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
                fields = parse_object(line)
                texts = [field_text(fields, name, columns) for name in columns.names]
            except FieldError as error:
                rejects.append(Reject(number, "bad_row", str(error), record))
            else:
                numbers.append(record)
                places.append(number)
                rows.append(fields)
                for name, text in zip(columns.names, texts, strict=True):
                    values[name].append(text)
            record += 1
            if record - first_record == ROWS_PER_BATCH:
                break
        if record == first_record:
            return
        yield SourceRows(
            num_records=record - first_record,
            records=numbers,
            lines=places,
            values=values,
            extra=extra_texts(rows, columns),
            rejects=rejects,
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of each line that is not blank; None for one that is too long."""
    try:
        with _opened(path) as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(MAX_LINE_BYTES)
                    yield number, None
                elif line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedError(f"{path} is damaged or still being written: {error}") from error


def _opened(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")
