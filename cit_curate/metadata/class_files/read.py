"""The one reader of a file of class names, whatever its format."""

from dataclasses import replace
from pathlib import Path

from cit_curate.errors import ConfigError
from cit_curate.metadata.class_files.formats import refuse_other_formats, text_of
from cit_curate.metadata.class_files.json_names import json_names
from cit_curate.metadata.class_files.plain_names import joined_names, plain_names
from cit_curate.metadata.class_files.table_names import (
    TABLE_SUFFIXES,
    read_table,
    several_columns,
    table_names,
)
from cit_curate.metadata.class_list import ClassList
from cit_curate.metadata.lines import is_comment


def read_class_file(path: Path, column: str = "", *, flag: str = "--metadata-column") -> ClassList:
    """The classes of a file, in its order; equal names stay apart.

    The format is told by the content, then by the suffix: JSON, a CSV or TSV, else one name a line
    (docs/formats.md, "Metadata").

    Args:
        path: The file.
        column: The column of a table, or the member of JSON objects, that holds the names; "" = the
            only one.
        flag: The flag that gives the column, for messages; "" = there is none.

    Raises:
        ConfigError: The file is not text or in another format, lacks the column, or has no class.
    """
    text = text_of(path)
    classes = json_names(text, path, column, flag=flag)
    if classes is None and (column or path.suffix.lower() in TABLE_SUFFIXES):
        classes = table_names(text, path, column, flag=flag)
    if classes is None:
        classes = _plain(text, path, flag)
    if not classes.entries:
        raise ConfigError(f"{path} holds no class name; write one a line")
    joined = joined_names(classes.name, classes.entries)
    return replace(classes, warnings=(*classes.warnings, *joined))


def _plain(text: str, path: Path, flag: str) -> ClassList:
    refuse_other_formats(text.splitlines(), path)
    lines = [line.strip() for line in text.splitlines() if not is_comment(line)]
    lines = [line for line in lines if line]
    classes = plain_names(lines, path)
    if not classes.notes and len(lines) > 1:
        _refuse_columns(lines, path, flag)
    return classes


def _refuse_columns(lines: list[str], path: Path, flag: str) -> None:
    """Refuse lines that all have the same number of tabs or semicolons, or a header of columns."""
    for mark in ("\t", ";", ",", "|"):
        if len({line.count(mark) for line in lines}) > 1 or mark not in lines[0]:
            continue
        table = read_table("\n".join(lines), path)
        if len(table.header) > 1 and (mark in "\t;" or table.has_header_word):
            raise several_columns(table, flag)
