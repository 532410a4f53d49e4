"""Reader of JSON files: told by their content, since `.json` and `.jsonl` name each other's.

A file has an object a line (`jsonl`), or is one array of objects, or one object: that of COCO or of
Karpathy's splits (`coco`), or one that has such an array under a key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cit_curate.captions import shown_text
from cit_curate.errors import ConfigError
from cit_curate.sources.columns import Columns, peek_hint
from cit_curate.sources.rows import ReadLog, SourceReader
from cit_curate.sources.text.coco import is_coco, is_karpathy, open_coco, open_karpathy
from cit_curate.sources.text.files import TextLines, text_lines
from cit_curate.sources.text.json_text import Held, array_under, held_by_object, json_shape
from cit_curate.sources.text.jsonl import Objects, numbered, open_jsonl, open_objects

_MAX_SHOWN = 10


def open_json(
    path: Path, columns: Columns, kind: Literal["json", "jsonl"], encoding: str = ""
) -> SourceReader:
    """Open a file of JSON objects, plain or compressed (`text.files`).

    Memory does not grow with the file, except with the images that COCO lists. The file is in the
    given encoding, or in that of its mark, else in UTF-8; undecodable bytes are lone surrogates.

    Args:
        path: The file.
        columns: The columns to read, which are keys of the objects.
        kind: What the file is called; a lone object in a `.jsonl` is one row.
        encoding: The encoding.

    Raises:
        ConfigError: A chosen column occurs in none of the first 100,000 objects, or the file holds
            something else, which the message says.
        BadInputError: There is no object.
        DamagedError: The file is damaged, or no JSON.
    """
    lines = text_lines(path, encoding)
    shape = json_shape(lines)
    if shape == "lines":
        return open_jsonl(lines, columns)
    if shape == "array":
        return _open_array(lines, None, columns)
    held = held_by_object(lines, lambda held: is_coco(held) or is_karpathy(held))
    if is_coco(held):
        return open_coco(lines, columns)
    if is_karpathy(held):
        return open_karpathy(lines, columns)
    lists = {key: what for key, what in held.items() if what.kind == "objects"}
    if not lists and (kind == "jsonl" or all(what.kind == "value" for what in held.values())):
        return open_jsonl(lines, columns)
    key = _chosen(lists, columns)
    if key is None:
        raise ConfigError(_refusal(path, held))
    return _open_array(lines, key, columns)


def _open_array(lines: TextLines, key: str | None, columns: Columns) -> SourceReader:
    def objects(log: ReadLog) -> Objects:
        del log  # An array has no lines to count.
        return numbered(array_under(lines, key))

    notes = () if key is None else (f"the rows are the list {shown_text(key)}",)
    return open_objects(objects, columns, lines, noun="elements", notes=notes)


def _chosen(lists: Mapping[str, Held], columns: Columns) -> str | None:
    """The key of the array to read: the only one, or the only one with the chosen texts."""
    texts = {*columns.text, *filter(None, [columns.caption])}
    fitting = [key for key, held in lists.items() if texts and texts <= held.keys.keys()]
    if len(lists) == 1 or len(fitting) == 1:
        return (fitting or list(lists))[0]
    return None


def _refusal(path: Path, held: Mapping[str, Held]) -> str:
    """The message on an object that has no list of rows, or several."""
    shown = [_shown(key, what) for key, what in list(held.items())[:_MAX_SHOWN]]
    shown += ["…"] if len(held) > _MAX_SHOWN else []
    kinds = {what.kind for what in held.values()}
    if "objects" in kinds:
        advice = "name the texts of one of its lists with --text or --caption"
    elif kinds <= {"values", "object"}:
        advice = (
            "those are columns, or rows by name, and not rows in a list; with pandas: "
            "frame.to_json(FILE, orient='records', lines=True)"
        )
    else:
        advice = "rows are objects in a list, or one a line"
    return f"{path} is one JSON object with {', '.join(shown)}; {advice}{peek_hint(path)}"


def _shown(key: str, held: Held) -> str:
    name = shown_text(key)
    if held.kind == "objects":
        return f"{name} (a list of {held.count:,} with {', '.join(list(held.keys)[:8])})"
    if held.kind == "values":
        return f"{name} (a list of {held.count:,}, no objects)"
    return f"{name} (an object)" if held.kind == "object" else name
