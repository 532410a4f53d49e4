"""From a data set's own labels to positions in a task's class list."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from cit_curate.errors import BadInputError, ConfigError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.metadata.tasks import Task
from cit_curate.records import Int64
from cit_train.evaluation.readers.class_list import (
    describe_classes,
    name_labels,
    read_class_list,
)
from cit_train.evaluation.readers.class_names import (
    find_name,
    key_positions,
    name_key,
    numbering,
    some,
)
from cit_train.evaluation.readers.labelled_images import (
    DEFAULT_FLAGS,
    Flags,
    LabelledImages,
    SourceImages,
)

__all__ = ["attach", "check_own_classes", "match_names", "name_by_list"]

# A data set's name of a class -> the task's name.
_ALIASES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "eurosat": {
            "annual crop": "annual crop land",
            "herbaceous vegetation": "brushland or shrubland",
            "highway": "highway or road",
            "industrial": "industrial buildings or commercial buildings",
            "pasture": "pasture land",
            "permanent crop": "permanent crop land",
            "residential": "residential buildings or homes or apartments",
            "sea lake": "lake or sea",
        },
        "fer2013": {"disgust": "disgusted", "fear": "fearful", "surprise": "surprised"},
        "clevr_counts": {
            "three": "3", "four": "4", "five": "5", "six": "6",
            "seven": "7", "eight": "8", "nine": "9", "ten": "10",
        },
        "mnist": {
            "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4",
            "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
        },
        "caltech101": {
            "background google": "background", "faces": "off-center face",
            "faces easy": "centered face", "leopards": "leopard", "motorbikes": "motorbike",
            "airplanes": "airplane", "car side": "side of a car",
            "cougar body": "body of a cougar cat", "cougar face": "face of a cougar cat",
            "crocodile head": "head of a crocodile", "flamingo head": "head of a flamingo",
            "snoopy": "snoopy (cartoon beagle)", "yin yang": "yin and yang symbol",
        },
        "hateful_memes": {"not hateful": "meme", "hateful": "hatespeech meme"},
    }
)  # fmt: skip
# Identifiers whose sorted order is the task's class order, provided that none is missing.
_IDENTIFIERS: Mapping[str, str] = MappingProxyType(
    {"imagenet": r"n\d{8}", "country211": r"[A-Z]{2}"}
)


def attach(
    source: SourceImages, task: Task | None, *, name: str, flags: Flags = DEFAULT_FLAGS
) -> LabelledImages:
    """Map a reader's labels to the classes of a task, or to the reader's own class names.

    Numbers without names are positions in the task's class list. Names are matched by their
    letters and digits. Readable names that do not match become the classes themselves, in the
    reader's order, because the labels refer to them; a note says so.

    Args:
        source: The reader's images.
        task: The built-in task; None = a task of the user's own.
        name: The name of the task, for messages.
        flags: The options, for messages.

    Raises:
        ConfigError: The names do not match, or neither the reader nor the task has any, or a task
            of the user's own has a single class.
        BadInputError: A label is out of range.
    """
    if source.names is None:
        return _by_position(source, task, name, flags)
    if task is None or task.classes is None:
        own = _labelled(source, source.labels, source.names, _texts(source.names))
        return check_own_classes(own, name=name, flags=flags)
    used = np.unique(source.labels)
    positions = match_names(source.names, task.classes, task=task.name)
    used_positions = [positions[label] for label in used.tolist()]
    if None not in used_positions and len(set(used_positions)) == len(used_positions):
        lookup = np.array([-1 if at is None else at for at in positions], dtype=np.int64)
        labels = _texts(task.classes)
        return _labelled(source, lookup[source.labels], task.classes, labels)
    if source.names_are_readable and len(source.names) == len(task.classes):
        note = "the class names are the data set's, which differ from the task's"
        noted = dataclasses.replace(source, notes=(*source.notes, note))
        return _labelled(noted, source.labels, source.names, _texts(source.names))
    raise _unmatched(source, task, [label for label in used.tolist() if positions[label] is None])


def match_names(
    names: Sequence[MetadataEntry], classes: Sequence[MetadataEntry], *, task: str
) -> list[int | None]:
    """The position of each name among the classes of a task; None = no such class.

    Case, spaces, punctuation and a number before the name (`001.Gull`) are ignored. Synonyms and
    the identifiers of well-known data sets match too. If all names are numbers, they are positions
    that start at 0 or at 1.

    Args:
        names: The source's class names; the first name of each entry is matched.
        classes: The classes of the task.
        task: The name of the task.
    """
    identifier = _IDENTIFIERS.get(task)
    if identifier is not None and len(names) == len(classes):
        texts = [entry.name for entry in names]
        if all(re.fullmatch(identifier, text) for text in texts):
            rank = {text: position for position, text in enumerate(sorted(texts))}
            return [rank[text] for text in texts]
    positions = key_positions(classes)
    aliases = {name_key(alias): name_key(name) for alias, name in _ALIASES.get(task, {}).items()}
    matched = [find_name(entry.name, positions, aliases) for entry in names]
    if all(position is None for position in matched):
        # Numbers are names where possible: CLEVR's class "3" is its first.
        return _numbers(names, len(classes)) or matched
    return matched


def check_own_classes(images: LabelledImages, *, name: str, flags: Flags) -> LabelledImages:
    """The images, with notes on classes that make the accuracy say less than it seems to.

    Args:
        images: A task of the user's own.
        name: The name of the task, for messages.
        flags: The options, for messages.

    Raises:
        ConfigError: There is one class.
    """
    names = [entry.name for entry in images.classes]
    if len(names) < 2:
        raise ConfigError(
            f"{name} has one class: accuracy says nothing, since {names[0]!r} is the only choice. "
            f"Give pictures of two classes or more, or the names to choose from ({flags.classes})"
        )
    notes = list(images.notes)
    used = np.unique(images.targets)
    if len(used) == 1:
        notes.append(f"all pictures are of one class, {names[used[0]]!r}")
    kind = _meaningless(names)
    if kind and not images.naming:
        notes.append(
            f"the class names are {kind} ({some(names)}), which say nothing to a model; give "
            f"{flags.classes} FILE with one name a line, in this order"
        )
    return dataclasses.replace(images, notes=tuple(notes))


def name_by_list(
    source: SourceImages, path: Path, *, where: Path, flags: Flags = DEFAULT_FLAGS
) -> SourceImages:
    """The images with the class names of a list in place of their own, as in `name_labels`.

    Labels that are numbers count the list's names from 0, or from 1 if they end with the last one.

    Raises:
        ConfigError: The list is missing or malformed, or does not match the labels.
    """
    if source.names is not None:
        texts = [entry.name for entry in source.names]
        named = name_labels(texts, path, where=where, flags=flags, are_folders=False)
        targets = np.array(named.positions, dtype=np.int64)[source.labels]
        notes = (*source.notes, *named.notes)
        return dataclasses.replace(
            source, labels=targets, names=named.classes, naming=named.naming, notes=notes
        )
    entries = read_class_list(path, flags).entries
    low, high = int(source.labels.min()), int(source.labels.max())
    first = 1 if low >= 1 and high == len(entries) else 0
    if low < 0 or high - first >= len(entries):
        raise ConfigError(
            f"{flags.classes}: {path} names {len(entries)} classes, and the labels in {where} are "
            f"{low} to {high}"
        )
    naming = describe_classes(path, entries, f"by number from {first}")
    return dataclasses.replace(source, labels=source.labels - first, names=entries, naming=naming)


def _meaningless(names: Sequence[str]) -> str:
    """What class names are that a model cannot know; "" for names."""
    if numbering(names) is not None:
        return "numbers"
    return "WordNet identifiers" if all(re.fullmatch(r"n\d{8}", name) for name in names) else ""


def _by_position(
    source: SourceImages, task: Task | None, name: str, flags: Flags
) -> LabelledImages:
    if task is None or task.classes is None:
        raise ConfigError(
            f"{name}: the labels are numbers, and nothing says what they mean; put a classes.txt "
            f"with one class name a line beside them, or give {flags.classes}"
        )
    outside = (source.labels < 0) | (source.labels >= len(task.classes))
    if outside.any():
        row = int(np.argmax(outside))
        raise BadInputError(
            f"{source.images.title(row)}: its label is {source.labels[row]}; "
            f"{name} has the classes 0 to {len(task.classes) - 1}"
        )
    return _labelled(source, source.labels, task.classes, _texts(task.classes))


def _labelled(
    source: SourceImages,
    targets: Int64,
    classes: tuple[MetadataEntry, ...],
    labels: tuple[str, ...],
) -> LabelledImages:
    return LabelledImages(
        reader=source.reader,
        images=source.images,
        targets=targets,
        classes=classes,
        labels=labels,
        prompts=source.prompts,
        naming=source.naming,
        notes=source.notes,
    )


def _numbers(names: Sequence[MetadataEntry], num_classes: int) -> list[int | None] | None:
    """The positions that the names stand for, if they are numbers with a single reading."""
    if not all(re.fullmatch(r"\d{1,9}", entry.name) for entry in names):
        return None
    numbers = [int(entry.name) for entry in names]
    if 0 in numbers and max(numbers) < num_classes:
        return list(numbers)
    if sorted(numbers) == list(range(1, num_classes + 1)):
        return [number - 1 for number in numbers]
    return None


def _texts(classes: Sequence[MetadataEntry]) -> tuple[str, ...]:
    """A distinct label for each class: its name, or its position where the name is not unique."""
    names = [entry.name for entry in classes]
    return tuple(
        name if names.count(name) == 1 else str(position) for position, name in enumerate(names)
    )


def _unmatched(source: SourceImages, task: Task, labels: Sequence[int]) -> ConfigError:
    assert source.names is not None
    assert task.classes is not None
    if not labels:
        return ConfigError(
            f"{task.name} ({source.reader}): two of its {len(source.names)} classes are one class "
            f"of the task; put a classes.csv with the columns folder and class beside them"
        )
    names = [source.names[label].name for label in labels]
    close = difflib.get_close_matches(names[0], [entry.name for entry in task.classes], n=1)
    hint = f"; the nearest to {names[0]!r} is {close[0]!r}" if close else ""
    shown = ", ".join(repr(name) for name in names[:5])
    return ConfigError(
        f"{task.name} ({source.reader}): {len(names)} of its {len(source.names)} classes are none "
        f"of the task's {len(task.classes)}: {shown}{', …' if len(names) > 5 else ''}{hint}; "
        "rename them, or put a classes.csv with the columns folder and class beside them"
    )
