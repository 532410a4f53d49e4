"""Values of JSON objects as the text of columns."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cit_curate.captions import replace_bad_text
from cit_curate.sources.columns import Columns


class FieldError(ValueError):
    """A value, or a whole text, that cannot stand in a column."""


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object that a text holds; bytes that are not UTF-8 become lone surrogates.

    Raises:
        FieldError: It is no JSON, or no object.
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
        FieldError: The value is a list, an object, a truth value, or a number that is no id.
    """
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    if name == columns.image_id and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    wanted = "text or a whole number" if name == columns.image_id else "text"
    raise FieldError(f"{name!a} is {type(value).__name__} {_shown(value)}, but must be {wanted}")


def extra_texts(rows: Sequence[Mapping[str, Any]], columns: Columns) -> dict[str, pa.Array]:
    """The `--extra` fields: text as it is, anything else as its JSON text, absent as null."""
    return {
        name: pa.array([_extra_text(row.get(name)) for row in rows], pa.string())
        for name in columns.extra
    }


def _extra_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return replace_bad_text(text)[0]


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:60] + "…"
