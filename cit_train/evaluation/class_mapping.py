"""Class mapping files: the labels of the output, each for one or several classes."""

import csv
import difflib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cit_curate.encodings import read_text
from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import MetadataEntry

__all__ = ["ClassLabels", "map_classes", "plain_labels"]

_COLUMNS = ("class", "label")


@dataclass(frozen=True)
class ClassLabels:
    """The labels of a classifier, and the label of each class.

    Attributes:
        labels: The distinct labels, in the order of their first class.
        label_of: The position in `labels` of each class.
        unmapped: The classes that the mapping lacks; they keep their own names.
        unmatched: The names in the mapping that are no class.
    """

    labels: tuple[str, ...]
    label_of: tuple[int, ...]
    unmapped: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def plain_labels(classes: Sequence[MetadataEntry]) -> ClassLabels:
    """The labels without a mapping: every class under its own name."""
    return _grouped([entry.name for entry in classes])


def map_classes(classes: Sequence[MetadataEntry], path: Path) -> ClassLabels:
    """The labels of classes according to a mapping file.

    The file refers to a class by name or by position from 0; a name outranks a position. Classes
    with the same label count as one.

    Args:
        classes: The classes that pictures are compared with.
        path: A `.csv` or `.tsv` with the columns class and label; or a `.json`: an object
            {class: label}, or a list of labels in the order of the classes.

    Raises:
        ConfigError: The file is malformed, contradicts itself, or names none of the classes.
    """
    mapping = _read(path, len(classes))
    names = [entry.name for entry in classes]
    mapped = [mapping.get(name, mapping.get(str(at))) for at, name in enumerate(names)]
    known = {*names, *map(str, range(len(classes)))}
    unmatched = tuple(key for key in mapping if key not in known)
    if all(label is None for label in mapped):
        near = difflib.get_close_matches(next(iter(mapping), ""), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"--mapping: {path} names none of the {len(names)} classes; it has "
            f"{', '.join(map(repr, unmatched[:3])) or 'nothing'}, they are "
            f"{', '.join(map(repr, names[:3]))}, …{hint}"
        )
    labelled = list(zip(names, mapped, strict=True))
    grouped = _grouped([name if label is None else label for name, label in labelled])
    unmapped = tuple(name for name, label in labelled if label is None)
    return ClassLabels(grouped.labels, grouped.label_of, unmapped, unmatched)


def _grouped(label_by_class: Sequence[str]) -> ClassLabels:
    labels = tuple(dict.fromkeys(label_by_class))
    position = {label: at for at, label in enumerate(labels)}
    return ClassLabels(labels, tuple(position[label] for label in label_by_class))


def _read(path: Path, num_classes: int) -> dict[str, str]:
    if not path.is_file():
        raise ConfigError(f"--mapping: there is no file {path}")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _from_json(path, num_classes)
    if suffix in (".csv", ".tsv"):
        return _from_table(path, "\t" if suffix == ".tsv" else ",")
    raise ConfigError(f"--mapping: {path} is neither .csv, .tsv nor .json")


def _from_json(path: Path, num_classes: int) -> dict[str, str]:
    def as_mapping(members: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in members:
            _add(mapping, key, value, f"{path}")
        return mapping

    try:
        value = json.loads(read_text(path), object_pairs_hook=as_mapping)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"--mapping: {path} is not JSON: {error}") from error
    if isinstance(value, list):
        if len(value) != num_classes:
            raise ConfigError(
                f"--mapping: {path} lists {len(value)} labels for {num_classes} classes; "
                "write one for each, or an object {class: label}"
            )
        value = {str(number): label for number, label in enumerate(value)}
    if not isinstance(value, dict):
        raise ConfigError(f"--mapping: {path} is neither an object {{class: label}} nor a list")
    for key, label in value.items():
        if not isinstance(label, str) or not label.strip():
            raise ConfigError(f"--mapping: {path}: the label of {key!r} is {label!r}, not a text")
    return value


def _from_table(path: Path, delimiter: str) -> dict[str, str]:
    mapping: dict[str, str] = {}
    with io.StringIO(read_text(path), newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        columns = reader.fieldnames or []
        if not set(_COLUMNS) <= set(columns):
            raise ConfigError(
                f"--mapping: {path} needs the columns class and label; "
                f"it has {', '.join(columns) or 'none'}"
            )
        for row in reader:
            name, label = ((row[column] or "").strip() for column in _COLUMNS)
            if not name or not label:
                raise ConfigError(f"--mapping: {path}:{reader.line_num}: class or label is empty")
            _add(mapping, name, label, f"{path}:{reader.line_num}")
    return mapping


def _add(mapping: dict[str, Any], name: str, label: Any, where: str) -> None:
    name = " ".join(name.split())  # as in metadata files
    if mapping.setdefault(name, label) != label:
        raise ConfigError(
            f"--mapping: {where}: {name!r} is {label!r} here and {mapping[name]!r} before"
        )
