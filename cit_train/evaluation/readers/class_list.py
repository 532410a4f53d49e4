"""Class lists: which of its names belongs to which class folder or label."""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cit_curate.errors import ConfigError
from cit_curate.metadata.class_files.formats import text_of
from cit_curate.metadata.class_files.read import read_class_file
from cit_curate.metadata.class_files.table_names import TABLE_SUFFIXES, ClassTable, read_table
from cit_curate.metadata.class_list import ClassList, class_line
from cit_curate.metadata.entries import MetadataEntry, parse_entries
from cit_train.evaluation.readers.class_names import find_name, key_positions, numbering, some
from cit_train.evaluation.readers.labelled_images import Flags

__all__ = [
    "NamedLabels",
    "describe_classes",
    "name_labels",
    "read_class_list",
]

_CLASS_COLUMNS = ("folder", "class")
# A line of a list that names its class first: `n02084071 dog`, `3: kite`.
_IDENTIFIED = re.compile(r"(n\d{8}|\d{1,9})(?:\s*[:;,=]\s*|\s+)(\S.*)")


@dataclass(frozen=True)
class NamedLabels:
    """The classes of a list, and which of them each label is.

    Attributes:
        classes: The classes to choose from, also those that no label has.
        positions: [labels], the position in `classes` of each label.
        naming: The file, its first names and how they were matched, for people.
        notes: Remarks that a person needs to interpret the result.
    """

    classes: tuple[MetadataEntry, ...]
    positions: tuple[int, ...]
    naming: str
    notes: tuple[str, ...] = ()


def name_labels(
    labels: Sequence[str], path: Path, *, where: Path, flags: Flags, are_folders: bool = True
) -> NamedLabels:
    """Match the names in a class list to labels, such as the names of class folders.

    A CSV with the columns folder and class says it itself, and so does a JSON object
    `{"label": "name"}`. Otherwise a line belongs to the label that it begins with
    (`n02084071 dog`), else to the one that it names, in any case and with any punctuation, else by
    its number from 0, or from 1 if the last line then has the largest. If no line names a label,
    the lines are in the order of the sorted folders, and there is one for each.

    Args:
        labels: The distinct labels, in natural order.
        path: The class list.
        where: The folder or file that has the labels, for messages.
        flags: The options, for messages.
        are_folders: Whether the labels are folders, which may be named in order.

    Raises:
        ConfigError: The file is missing or malformed, or its names do not match the labels.
    """
    if not path.is_file():
        raise ConfigError(f"{flags.classes}: there is no file {path}")
    by_label = _named_by_label(labels, path, where, flags)
    if by_label is not None:
        return _named(path, *by_label, "by the labels in it")
    identified = _identified(_plain_entries(path), labels)
    if identified is not None:
        return _named(path, *identified, "by the identifiers in it")
    read = read_class_list(path, flags)
    named = _matched(read.entries, labels, path, where, flags, are_folders=are_folders)
    return replace(named, notes=(*read.notes, *read.warnings, *named.notes))


def _plain_entries(path: Path) -> list[MetadataEntry]:
    """The lines of a list as they are, with the identifiers that they may begin with."""
    lines = text_of(path).splitlines()
    return [entry for line in lines for entry in parse_entries([line])]


def _matched(
    entries: Sequence[MetadataEntry],
    labels: Sequence[str],
    path: Path,
    where: Path,
    flags: Flags,
    *,
    are_folders: bool,
) -> NamedLabels:
    positions = _by_name(entries, labels)
    if positions is not None:
        return _named(path, entries, positions, "by name")
    _refuse_contradiction(entries, labels, path, where, flags)
    numbers = _by_number(entries, labels, path, where, flags)
    if numbers is not None:
        return _named(path, entries, *numbers)
    if are_folders and len(entries) == len(labels):
        return _named(path, entries, range(len(labels)), "in the order of the sorted folders")
    raise _unmatched(entries, labels, path, where, flags, are_folders=are_folders)


def read_class_list(path: Path, flags: Flags) -> ClassList:
    """The classes of a list; two of them may have one name (ImageNet's cranes).

    Raises:
        ConfigError: The file is missing or malformed.
    """
    if not path.is_file():
        raise ConfigError(f"{flags.classes}: there is no file {path}")
    return read_class_file(path, flag="")


def describe_classes(path: Path, classes: Sequence[MetadataEntry], how: str) -> str:
    """One line: the file, the number of its classes, the first ones, and how they were matched."""
    return f"{class_line(path.name, [entry.name for entry in classes])}; matched {how}"


def _named_by_label(
    labels: Sequence[str], path: Path, where: Path, flags: Flags
) -> tuple[tuple[MetadataEntry, ...], list[int]] | None:
    """Classes and positions where the file has labels with names; None = it is a list of names."""
    text = text_of(path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        table = read_table(text, path, _CLASS_COLUMNS)
        if len(table.header) == 1:
            return None
        return _entries_by_folder(table, labels, where, flags), list(range(len(labels)))
    if not text.lstrip().startswith("{"):
        return None
    try:
        named = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    is_text = all(isinstance(name, str) and name.strip() for name in named.values())
    if not is_text or not set(labels) <= named.keys():
        return None
    entries = tuple(MetadataEntry(" ".join(name.split())) for name in named.values())
    return entries, [list(named).index(label) for label in labels]


def _entries_by_folder(
    table: ClassTable, labels: Sequence[str], where: Path, flags: Flags
) -> tuple[MetadataEntry, ...]:
    path = table.path
    if not {*_CLASS_COLUMNS} <= {*table.header}:
        raise ConfigError(
            f"{flags.classes}: {path} needs the columns folder and class; it has "
            f"{table.named_columns}"
        )
    named: dict[str, MetadataEntry] = {}
    cells = (table.column(column, flag=flags.classes) for column in _CLASS_COLUMNS)
    for (line, folder), (_, text) in zip(*cells, strict=True):
        entries = parse_entries([text], comments=False)
        if not folder or not entries or folder in named:
            wrong = "comes twice" if folder in named else "or its class is empty"
            raise ConfigError(f"{flags.classes}: {path}:{line}: folder {folder!r} {wrong}")
        named[folder] = entries[0]
    unnamed = [label for label in labels if label not in named]
    missing = [folder for folder in named if folder not in labels]
    if unnamed or missing:
        raise ConfigError(
            f"{flags.classes}: {path} names {len(named)} folders, and {where} has {len(labels)}; "
            f"without a name: {some(unnamed)}; not in {where}: {some(missing)}"
        )
    return tuple(named[label] for label in labels)


def _identified(
    entries: Sequence[MetadataEntry], labels: Sequence[str]
) -> tuple[tuple[MetadataEntry, ...], list[int]] | None:
    """Classes and positions where each line begins with an identifier, and each label is one."""
    matches = [_IDENTIFIED.fullmatch(entry.name) for entry in entries]
    position = {match[1]: row for row, match in enumerate(matches) if match}
    if not position or len(position) < len(entries) or not set(labels) <= position.keys():
        return None
    named = [
        replace(entry, name=match[2])
        for entry, match in zip(entries, matches, strict=True)
        if match is not None
    ]
    return tuple(named), [position[label] for label in labels]


def _by_name(entries: Sequence[MetadataEntry], labels: Sequence[str]) -> list[int] | None:
    """The position of each label where the entries name all of them."""
    names = [entry.name for entry in entries]
    if len(set(names)) == len(names) and set(labels) <= set(names):
        return [names.index(label) for label in labels]
    positions = key_positions(entries)
    found = [find_name(label, positions) for label in labels]
    known = [position for position in found if position is not None]
    return known if len(set(known)) == len(labels) else None


def _by_number(
    entries: Sequence[MetadataEntry],
    labels: Sequence[str],
    path: Path,
    where: Path,
    flags: Flags,
) -> tuple[list[int], str] | None:
    """The position of each label where the labels are numbers that count the entries."""
    numbers = numbering(labels)
    if numbers is None or len(set(numbers)) < len(numbers) or max(numbers) > len(entries):
        return None
    if 0 in numbers:
        return (numbers, "by number from 0") if max(numbers) < len(entries) else None
    if max(numbers) == len(entries):
        return [number - 1 for number in numbers], "by number from 1"
    raise ConfigError(
        f"{flags.classes}: {path} names {len(entries)} classes, and the numbers in {where} "
        f"({some(labels)}) may count from 0 or from 1; write a .csv with the columns folder and "
        "class"
    )


def _refuse_contradiction(
    entries: Sequence[MetadataEntry], labels: Sequence[str], path: Path, where: Path, flags: Flags
) -> None:
    """Refuse a list that names some labels, but not in their order, and others not at all."""
    positions = key_positions(entries)
    found = [find_name(label, positions) for label in labels]
    in_order = all(position in (None, row) for row, position in enumerate(found))
    if in_order and len(entries) == len(labels):
        return
    unknown = [label for label, position in zip(labels, found, strict=True) if position is None]
    if len(unknown) == len(labels) or numbering(labels) is not None:
        return
    if not unknown:
        raise ConfigError(
            f"{flags.classes}: two of the {len(labels)} classes in {where} ({some(labels)}) have "
            f"one name in {path}; write a .csv with the columns folder and class"
        )
    close = difflib.get_close_matches(unknown[0], [entry.name for entry in entries], n=1)
    hint = f"; the nearest to {unknown[0]!r} is {close[0]!r}" if close else ""
    raise ConfigError(
        f"{flags.classes}: {path} names {len(labels) - len(unknown)} of the {len(labels)} classes "
        f"in {where}, but not {some(unknown)}{hint}; name all of them, or write a .csv with the "
        "columns folder and class"
    )


def _unmatched(
    entries: Sequence[MetadataEntry],
    labels: Sequence[str],
    path: Path,
    where: Path,
    flags: Flags,
    *,
    are_folders: bool,
) -> ConfigError:
    what = "class folders" if are_folders else "labels"
    advice = "write one line for each of them, with its name"
    if are_folders:
        advice = (
            "write one line for each folder in sorted order, or a .csv with the columns folder and "
            "class"
        )
    return ConfigError(
        f"{flags.classes}: {path} names {len(entries)} classes, and {where} has {len(labels)} "
        f"{what} ({some(labels)}); {advice}"
    )


def _named(
    path: Path, entries: Sequence[MetadataEntry], positions: Sequence[int], how: str
) -> NamedLabels:
    classes = tuple(entries)
    naming = describe_classes(path, classes, how)
    unused = len(classes) - len(set(positions))
    notes = []
    if unused:
        notes.append(
            f"{unused} of the {len(classes)} classes in {path.name} have no pictures; they are "
            "choices like the others"
        )
    return NamedLabels(classes, tuple(positions), naming, tuple(notes))
