"""The names in JSON: arrays, objects by index, and JSON lines."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cit_curate.errors import ConfigError
from cit_curate.metadata.class_files.formats import WAY_OUT, refused
from cit_curate.metadata.class_files.plain_names import HEADER_WORDS
from cit_curate.metadata.class_list import ClassList, shortened
from cit_curate.metadata.lines import parse_entries

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

_WRAPPERS = HEADER_WORDS | {f"{word}s" for word in HEADER_WORDS} | {"categories", "id2label"}
_WORDNET_ID = re.compile(r"[nvars]\d{8}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _NoJsonError(ValueError):
    """The text is not JSON."""


def json_names(text: str, path: Path, column: str, *, flag: str) -> ClassList | None:
    """The names in a JSON document, or in JSON lines.

    An array holds the names, or objects with the names in one column. An object gives each index,
    or each WordNet id, its name; or each name its index; or it holds one array or object of names.
    Where a value is a list, the name is its last text. A name is read like a line of a plain list,
    but never as a comment.

    Args:
        text: The text of the file.
        path: The file, for messages.
        column: The member of the objects that holds the names; "" = the only one with texts.
        flag: The flag that gives the column, for messages; "" = there is none.

    Returns:
        None: The text is not JSON, nor does the suffix say so.

    Raises:
        ConfigError: It is JSON of another shape, or only its suffix is JSON's.
    """
    is_named_json = path.suffix.lower() in JSON_SUFFIXES
    if text.lstrip()[:1] not in ("[", "{"):
        # JSON lines of bare texts are read as quoted names.
        if is_named_json and text.strip() and text.lstrip()[0] != '"':
            raise refused(
                path, "is not the JSON that its suffix says", text.lstrip().split("\n")[0]
            )
        return None
    try:
        value = _parsed(text, path)
    except _NoJsonError as error:
        if is_named_json:
            first = text.lstrip().split("\n")[0]
            raise refused(path, f"is not JSON ({error})", first) from error
        return None
    names, notes = _names_of(value, path, column, flag)
    entries = tuple(parse_entries(names, comments=False))
    return ClassList(name=str(path), entries=entries, notes=tuple(notes))


def _parsed(text: str, path: Path) -> Any:
    """The value of a document, or the list of the objects of JSON lines."""

    def as_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(members)
        if len(value) < len(members):
            twice = Counter(key for key, _ in members).most_common(1)[0][0]
            raise ConfigError(f"{path}: an object has the key {twice!r} twice")
        return value

    def load(part: str) -> Any:
        try:
            return json.loads(part, object_pairs_hook=as_object)
        except (ValueError, RecursionError) as error:
            raise _NoJsonError(str(error)) from error

    try:
        return load(text)
    except _NoJsonError:
        # A file that is not JSON lines either is described by its error as a document.
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
            raise
        return [load(line) for line in lines]


def _names_of(value: Any, path: Path, column: str, flag: str) -> tuple[list[str], list[str]]:
    """The names in a value, and the notes on how they were read."""
    if isinstance(value, dict):
        if len(value) == 1 and next(iter(value)).lower() in _WRAPPERS:
            ((key, inner),) = value.items()
            if isinstance(inner, list | dict):
                names, notes = _names_of(inner, path, column, flag)
                return names, [f"from its {key!r}", *notes]
        is_row = column in value or bool(HEADER_WORDS & {key.lower() for key in value})
        return _of_rows([value], path, column, flag) if is_row else _of_object(value, path)
    if value and all(isinstance(row, dict) for row in value):
        return _of_rows(value, path, column, flag)
    if column:
        raise ConfigError(f"{flag}: {path} holds no objects, so it has no column {column!r}")
    return [_text(name, f"{path}: element {at}") for at, name in enumerate(value)], []


def _of_rows(
    rows: Sequence[Mapping[str, Any]], path: Path, column: str, flag: str
) -> tuple[list[str], list[str]]:
    """The names in a column of objects."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if not column:
        texts = [key for key in keys if any(isinstance(row.get(key), str) for row in rows)]
        if len(texts) != 1:
            what = "several columns" if texts else "no column"
            with_flag = f" with {flag}" if flag and texts else ""
            raise ConfigError(
                f"{path} has {what} of texts; name the one with the class names{with_flag}; it has "
                f"{', '.join(texts or keys) or 'no member'}"
            )
        column = texts[0]
    elif column not in keys:
        raise ConfigError(f"{flag}: {path} has no column {column!r}; it has {', '.join(keys)}")
    names = [_text(row.get(column), f"{path}: {column!r} of object {at}")
             for at, row in enumerate(rows)]  # fmt: skip
    return names, [f"column {column!r}"]


def _of_object(value: Mapping[str, Any], path: Path) -> tuple[list[str], list[str]]:
    """The names of an object by index or by WordNet id, or of one that gives each name its index.

    Raises:
        ConfigError: It is none of these.
    """
    if all(key.isdecimal() and len(key) < 19 for key in value):
        by_index = {int(key): each for key, each in value.items()}
        if len(by_index) < len(value):
            raise ConfigError(f"{path}: an index comes twice, such as '1' and '01'")
        items = [(str(index), by_index[index]) for index in sorted(by_index)]
        note = "in the order of their numbers"
        if value and max(by_index) - min(by_index) >= len(by_index):
            note = f"{note}, of which some are missing"
    elif all(map(_WORDNET_ID.fullmatch, value)):
        items, note = list(value.items()), "WordNet ids left out"
    else:
        indices = list(value.values())
        are_indices = all(type(index) is int for index in indices)
        if are_indices and sorted(indices) in (
            [*range(len(indices))],
            [*range(1, len(indices) + 1)],
        ):
            return sorted(value, key=value.__getitem__), ["in the order of their numbers"]
        keys = ", ".join(repr(shortened(key)) for key in list(value)[:5])
        raise ConfigError(
            f"{path} is an object with {keys}{', …' if len(value) > 5 else ''}; which of it are "
            f"the class names is not clear; {WAY_OUT}"
        )
    names = [_last_text(each, f"{path}: the value of {key!r}") for key, each in items]
    lists = any(isinstance(each, list) for _, each in items)
    return names, [note, *(["each name is the last text of its list"] if lists else [])]


def _last_text(value: Any, where: str) -> str:
    texts = [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
    return texts[-1] if texts else _text(value, where)


def _text(value: Any, where: str) -> str:
    """A value that is a name.

    Raises:
        ConfigError: It is not a text, or an empty one.
    """
    if not isinstance(value, str):
        shown = shortened(json.dumps(value))
        raise ConfigError(f"{where} is {shown} and not a text (counted from 0); {WAY_OUT}")
    if not value.replace("|", "").strip():
        raise ConfigError(f"{where} is empty (counted from 0); each class needs a name")
    return _LONE_SURROGATE.sub("\ufffd", value)
