"""JSON objects as rows: one object a line, and a reject for every other line."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from cit_curate.captions import shown_text
from cit_curate.errors import BadInputError
from cit_curate.sources.columns import LIST_KEY, Columns, peek_hint
from cit_curate.sources.rows import Cell, Problem, ReadLog, SourceReader, SourceRows, batches_of
from cit_curate.sources.text.files import MAX_LINE_CHARS, TextLines

# The first objects, in one of which a chosen column must occur; in most files it is in the first.
CHECKED_OBJECTS = 100_000
_MAX_SHOWN_KEYS = 50
# Whole numbers beyond it are not all numbers of 64 bits, so that another one may have been meant.
MAX_EXACT_FLOAT = 2**53

Objects = Iterator[tuple[int, "dict[str, Any] | FieldError"]]
"""Numbered objects, from 1, and for each record that is no object what is wrong with it."""


def open_jsonl(lines: TextLines, columns: Columns) -> SourceReader:
    """Open a file of JSON objects, one a line; the errors are those of `open_objects`."""
    return open_objects(lambda log: _objects(lines, log), columns, lines, noun="lines")


def open_objects(
    objects: Callable[[ReadLog], Objects],
    columns: Columns,
    lines: TextLines,
    *,
    noun: str,
    notes: Sequence[str] = (),
) -> SourceReader:
    """Open the objects of a file.

    A column is a key of the objects. Where it is absent or null, the row has no such text; where it
    is a list of texts, the row has several.

    Args:
        objects: A function that reads the objects, from the first one.
        columns: The columns to read.
        lines: The file.
        noun: What the objects are, for messages.
        notes: What was guessed, see `SourceReader.notes`.

    Raises:
        ConfigError: A chosen column occurs in none of the first 100,000 objects.
        BadInputError: There is no object.
        DamagedError: The file is damaged.
    """
    keys = keys_of(objects(ReadLog()), columns)
    if not keys:
        raise BadInputError(
            f"{lines.path}: none of its {noun} is a JSON object with keys{peek_hint(lines.path)}"
        )
    return reader_of(objects, columns.found_in(keys, lines.path), lines, notes)


def reader_of(
    objects: Callable[[ReadLog], Objects],
    columns: Columns,
    lines: TextLines,
    notes: Sequence[str] = (),
) -> SourceReader:
    """The reader of objects whose columns are known; the arguments are those of `open_objects`."""
    columns = columns.with_list_key()

    def read() -> Iterator[SourceRows]:
        log = ReadLog()
        records = ((number, record_of(fields, columns)) for number, fields in objects(log))
        return batches_of(records, columns, log)

    return SourceReader(
        columns=columns,
        extra_types={name: pa.string() for name in columns.extra},
        read=read,
        notes=(*lines.notes, *notes),
    )


def numbered(elements: Iterable[Any], noun: str = "element") -> Objects:
    """The elements of an array as `Objects`."""
    for number, element in enumerate(elements, 1):
        if isinstance(element, dict):
            yield number, element
        else:
            shown = shown_text(json.dumps(element)[:100])
            yield number, FieldError(f"{noun} {number} is no object {{…}}: {shown}")


def keys_of(objects: Objects, columns: Columns) -> list[str]:
    """The keys in order of appearance, read until all chosen columns have appeared."""
    wanted = {*columns.names, *columns.extra}
    seen: dict[str, None] = {}
    for _, fields in islice(objects, CHECKED_OBJECTS):
        if isinstance(fields, FieldError):
            continue
        seen |= {key: None for key in fields if key in wanted or len(seen) < _MAX_SHOWN_KEYS}
        if wanted <= seen.keys():
            break
    return list(seen)


def record_of(
    fields: "Mapping[str, Any] | FieldError", columns: Columns
) -> Sequence[Cell] | Problem:
    """The cells of an object, as in `rows.batches_of`."""
    try:
        if isinstance(fields, FieldError):
            raise fields
        cells = [field_cell(fields, name, columns) for name in columns.names]
        return [*cells, *extra_texts(fields, columns)]
    except FieldError as error:
        return Problem(error.reason, str(error))


def _objects(lines: TextLines, log: ReadLog) -> Objects:
    for number, line in enumerate(chain.from_iterable(lines.blocks()), 1):
        log.counts["lines"] += 1
        if not line.strip():
            log.counts["blank_lines"] += 1
        elif len(line) >= MAX_LINE_CHARS:
            yield number, FieldError(f"the line has {MAX_LINE_CHARS:,} characters or more")
        else:
            try:
                fields = parse_object(line)
            except FieldError as error:
                yield number, error
            else:
                yield number, fields


class FieldError(ValueError):
    """A value that cannot be a cell, or a text that is no JSON object; with the reject's reason."""

    def __init__(self, detail: str, reason: str = "bad_row") -> None:
        super().__init__(detail)
        self.reason = reason


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
    if name == columns.image_id and isinstance(value, int | float) and not isinstance(value, bool):
        return id_text(value)
    if name == columns.image and isinstance(value, list):
        raise FieldError(
            f"{name!a} is a list of {len(value)}; several images in a row are not supported: give "
            "each image a row of its own"
        )
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


def id_text(number: int | float) -> str:
    """A whole number as an id, also one that a program wrote as 700.0.

    Raises:
        FieldError: It is a fraction, or too large for a float to be exact.
    """
    if isinstance(number, float):
        if not number.is_integer():
            raise FieldError(f"the image id {number} is no whole number", "bad_image_id")
        if abs(number) > MAX_EXACT_FLOAT:
            raise FieldError(
                f"the image id {number} is beyond 2**53, where a float is no exact number",
                "bad_image_id",
            )
    return str(int(number))


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
