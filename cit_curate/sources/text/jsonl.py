"""Reader of JSON lines: one object a line, and a reject for every other line."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from cit_curate.errors import BadInputError, DamagedError
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import Problem, SourceReader, batches_of

MAX_LINE_BYTES = 16 * 1024 * 1024
# The first lines, in one of which a chosen column must occur; in most files it is in line 1.
CHECKED_LINES = 100_000
_MAX_SHOWN_KEYS = 50


def open_jsonl(path: Path, columns: Columns) -> SourceReader:
    """Open a file of JSON objects, one a line, plain or gzipped (`.gz`).

    A column is a key of the objects. Where it is absent or null, the row has no such text. The file
    is UTF-8 with or without a byte order mark. Other bytes are decoded as lone surrogates.

    Raises:
        ConfigError: A chosen column occurs in none of the first 100,000 lines.
        BadInputError: No line is an object.
        DamagedError: The file is compressed and damaged.
    """
    columns.check(_keys(path, columns), path)
    return SourceReader(
        columns=columns,
        extra_types={name: pa.string() for name in columns.extra},
        read=lambda: batches_of(_records(path, columns), columns),
    )


def _keys(path: Path, columns: Columns) -> list[str]:
    """Keys in order of appearance, read until all chosen columns have appeared."""
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


def _records(path: Path, columns: Columns) -> Iterator[tuple[int, Sequence[str | None] | Problem]]:
    for number, line in _lines(path):
        try:
            if line is None:
                raise FieldError(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
            fields = parse_object(line)
            texts = [field_text(fields, name, columns) for name in columns.names]
            yield number, texts + extra_texts(fields, columns)
        except FieldError as error:
            yield number, Problem("bad_row", str(error))


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


class FieldError(ValueError):
    """A value that cannot be a cell, or a text that is no JSON object."""


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object in a text; bytes that are not UTF-8 become lone surrogates.

    Raises:
        FieldError: The text is no JSON object.
    """
    try:
        value = json.loads(text.decode("utf-8", errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise FieldError(f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise FieldError(f"JSON, but no object {{…}}: it starts with {text[:20]!a}")
    return value


def field_text(fields: Mapping[str, Any], name: str, columns: Columns) -> str | None:
    """The text of a field; None when it is absent or null. An id may be a whole number.

    Raises:
        FieldError: The value is a list, an object, a boolean, or a number that is no id.
    """
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    if name == columns.image_id and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    wanted = "text or a whole number" if name == columns.image_id else "text"
    raise FieldError(f"{name!a} is {type(value).__name__} {_shown(value)}, but must be {wanted}")


def extra_texts(fields: Mapping[str, Any], columns: Columns) -> list[str | None]:
    """The `--extra` fields: strings unchanged, other values as JSON, None for absent or null."""
    return [_extra_text(fields.get(name)) for name in columns.extra]


def _extra_text(value: Any) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:60] + "…"
