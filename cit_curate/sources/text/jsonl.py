"""Reader of JSON lines: one object a line, and a reject for every other line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from cit_curate.errors import BadInputError
from cit_curate.sources.columns import LIST_KEY, Columns, peek_hint
from cit_curate.sources.rows import Cell, Problem, ReadLog, SourceReader, SourceRows, batches_of
from cit_curate.sources.text.files import MAX_LINE_CHARS, TextLines, text_lines

# The first lines, in one of which a chosen column must occur; in most files it is in line 1.
CHECKED_LINES = 100_000
_MAX_SHOWN_KEYS = 50


def open_jsonl(path: Path, columns: Columns, encoding: str = "") -> SourceReader:
    """Open a file of JSON objects, one a line, plain or compressed (`text.files`).

    A column is a key of the objects. Where it is absent or null, the row has no such text; where it
    is a list of texts, the row has several. The file is in the given encoding, or in that of its
    mark, else in UTF-8; undecodable bytes are lone surrogates.

    Raises:
        ConfigError: A chosen column occurs in none of the first 100,000 lines.
        BadInputError: No line is an object.
        DamagedError: The file is compressed and damaged.
    """
    lines = text_lines(path, encoding)
    columns = columns.found_in(_keys(lines, columns), path).with_list_key()
    return SourceReader(
        columns=columns,
        extra_types={name: pa.string() for name in columns.extra},
        read=partial(_batches, lines, columns),
        notes=lines.notes,
    )


def _batches(lines: TextLines, columns: Columns) -> Iterator[SourceRows]:
    log = ReadLog()
    return batches_of(_records(lines, columns, log), columns, log)


def _keys(lines: TextLines, columns: Columns) -> list[str]:
    """Keys in order of appearance, read until all chosen columns have appeared."""
    wanted = {*columns.names, *columns.extra}
    seen: dict[str, None] = {}
    for number, (_, line) in enumerate(_numbered(lines)):
        if number == CHECKED_LINES:
            break
        try:
            keys = parse_object(line)
        except FieldError:
            continue
        seen |= {key: None for key in keys if key in wanted or len(seen) < _MAX_SHOWN_KEYS}
        if wanted <= seen.keys():
            break
    if not seen:
        raise BadInputError(
            f"{lines.path}: none of its lines is a JSON object with keys{peek_hint(lines.path)}"
        )
    return list(seen)


def _records(
    lines: TextLines, columns: Columns, log: ReadLog
) -> Iterator[tuple[int, Sequence[Cell] | Problem]]:
    for number, line in _numbered(lines):
        log.counts["lines"] += 1
        if not line.strip():
            log.counts["blank_lines"] += 1
            continue
        try:
            if len(line) >= MAX_LINE_CHARS:
                raise FieldError(f"the line has {MAX_LINE_CHARS:,} characters or more")
            fields = parse_object(line)
            cells = [field_cell(fields, name, columns) for name in columns.names]
            yield number, [*cells, *extra_texts(fields, columns)]
        except FieldError as error:
            yield number, Problem("bad_row", str(error))


def _numbered(lines: TextLines) -> Iterator[tuple[int, str]]:
    return enumerate(chain.from_iterable(lines.blocks()), 1)


class FieldError(ValueError):
    """A value that cannot be a cell, or a text that is no JSON object."""


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        FieldError: The text is no JSON object.
    """
    try:
        value = json.loads(text)
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
    if columns.may_be_list(name):
        wanted = "text or a list of texts"
    raise FieldError(f"{name!a} is {type(value).__name__} {_shown(value)}, but must be {wanted}")


def field_cell(fields: Mapping[str, Any], name: str, columns: Columns) -> Cell:
    """As `field_text`; the list of a field of texts is a list of them, of which some may be None.

    `LIST_KEY` is the text key of the captions.

    Raises:
        FieldError: As `field_text`; or a value of the list is no text.
    """
    if name == LIST_KEY:
        return columns.list_key(is_list=isinstance(fields.get(columns.caption or ""), list))
    value = fields.get(name)
    if not isinstance(value, list) or not columns.may_be_list(name):
        return field_text(fields, name, columns)
    for text in value:
        if text is not None and not isinstance(text, str):
            raise FieldError(
                f"{name!a} has {type(text).__name__} {_shown(text)} in its list, where only texts "
                "may be"
            )
    return value


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
