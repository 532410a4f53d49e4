"""The labels of a data set, in a source's own words, as positions in a task's class list."""

import dataclasses
import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from cit_curate.errors import BadInputError, ConfigError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.metadata.tasks import Task
from cit_curate.records import Int64
from cit_train.evaluation.readers.labelled_images import FoundImages, LabelledImages

__all__ = ["attach", "match_names"]

# What data sets call classes whose name in the task is another.
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
# Identifiers whose sorted order is the order of the task's classes, when all of them are there.
_IDENTIFIERS: Mapping[str, str] = MappingProxyType(
    {"imagenet": r"n\d{8}", "country211": r"[A-Z]{2}"}
)


def attach(found: FoundImages, task: Task | None, *, name: str) -> LabelledImages:
    """Give the images of a reader the classes of a task, or a task of one's own those it names.

    Numbers without names are positions in the task's class list. Names are matched by their
    letters and digits. Readable names that do not match are taken as the classes themselves, in
    their own order, since they are surely those of the labels; a note says so.

    Args:
        found: From a reader.
        task: The built-in task; None = a task of one's own.
        name: The task's, for messages.

    Raises:
        ConfigError: The names do not match, or there are none and the task has none either.
        BadInputError: A label is outside of the classes.
    """
    if found.names is None:
        return _by_position(found, task, name)
    if task is None or task.classes is None:
        return _labelled(found, found.labels, found.names, _texts(found.names))
    used = np.unique(found.labels)
    positions = match_names(found.names, task.classes, task=task.name)
    of_used = [positions[label] for label in used.tolist()]
    if None not in of_used and len(set(of_used)) == len(of_used):
        lookup = np.array([-1 if each is None else each for each in positions], dtype=np.int64)
        labels = _texts(task.classes)
        return _labelled(found, lookup[found.labels], task.classes, labels)
    if found.names_are_readable and len(found.names) == len(task.classes):
        note = "the class names are the data set's, which differ from the task's"
        noted = dataclasses.replace(found, notes=(*found.notes, note))
        return _labelled(noted, found.labels, found.names, _texts(found.names))
    raise _unmatched(found, task, [label for label in used.tolist() if positions[label] is None])


def match_names(
    names: Sequence[MetadataEntry], classes: Sequence[MetadataEntry], *, task: str
) -> list[int | None]:
    """The position of each name among the classes of a task; None = it is none of them.

    Upper case, blanks and punctuation do not count, nor does a number before a name (`001.Gull`);
    synonyms and the identifiers of well-known data sets do. Names that are all numbers are
    positions, from 0 or from 1.

    Args:
        names: What a source calls its classes; each one's first name is matched.
        classes: Of the task.
        task: Its name.
    """
    identifier = _IDENTIFIERS.get(task)
    if identifier is not None and len(names) == len(classes):
        texts = [entry.name for entry in names]
        if all(re.fullmatch(identifier, text) for text in texts):
            rank = {text: position for position, text in enumerate(sorted(texts))}
            return [rank[text] for text in texts]
    positions = _positions(classes)
    aliases = {_key(alias): _key(name) for alias, name in _ALIASES.get(task, {}).items()}
    matched = [_match(entry.name, positions, aliases) for entry in names]
    if all(position is None for position in matched):
        # Numbers are names where they can be: CLEVR's class "3" is its first.
        return _numbers(names, len(classes)) or matched
    return matched


def _by_position(found: FoundImages, task: Task | None, name: str) -> LabelledImages:
    if task is None or task.classes is None:
        raise ConfigError(
            f"{name}: the labels are numbers, and nothing says what they mean; put a classes.txt "
            "with one class name a line beside them"
        )
    outside = (found.labels < 0) | (found.labels >= len(task.classes))
    if outside.any():
        row = int(np.argmax(outside))
        raise BadInputError(
            f"{found.images.title(row)}: its label is {found.labels[row]}; "
            f"{name} has the classes 0 to {len(task.classes) - 1}"
        )
    return _labelled(found, found.labels, task.classes, _texts(task.classes))


def _labelled(
    found: FoundImages,
    targets: Int64,
    classes: tuple[MetadataEntry, ...],
    labels: tuple[str, ...],
) -> LabelledImages:
    return LabelledImages(
        source=found.source,
        images=found.images,
        targets=targets,
        classes=classes,
        labels=labels,
        prompts=found.prompts,
        notes=found.notes,
    )


def _positions(classes: Sequence[MetadataEntry]) -> dict[str, int]:
    """Position by key; a first name goes before a synonym, and a name of two classes is left out.

    ImageNet has two cranes and two maillots: only their identifiers tell them apart.
    """
    first: dict[str, list[int]] = {}
    further: dict[str, list[int]] = {}
    for position, entry in enumerate(classes):
        first.setdefault(_key(entry.name), []).append(position)
        for synonym in entry.synonyms:
            further.setdefault(_key(synonym), []).append(position)
    merged = {**further, **first}
    return {key: found[0] for key, found in merged.items() if len(found) == 1}


def _match(name: str, positions: Mapping[str, int], aliases: Mapping[str, str]) -> int | None:
    for text in (name, re.sub(r"^\d+\.", "", name)):
        key = _key(text)
        found = positions.get(key, positions.get(aliases.get(key, "")))
        if found is not None:
            return found
    return None


def _numbers(names: Sequence[MetadataEntry], num_classes: int) -> list[int | None] | None:
    """Positions, when the names are numbers that can be read in one way only."""
    if not all(re.fullmatch(r"\d{1,9}", entry.name) for entry in names):
        return None
    numbers = [int(entry.name) for entry in names]
    if 0 in numbers and max(numbers) < num_classes:
        return list(numbers)
    if sorted(numbers) == list(range(1, num_classes + 1)):
        return [number - 1 for number in numbers]
    return None


def _key(name: str) -> str:
    """Letters and digits of a name, in lower case and without accents."""
    plain = unicodedata.normalize("NFKD", name).lower()
    return "".join(char for char in plain if char.isalnum())


def _texts(classes: Sequence[MetadataEntry]) -> tuple[str, ...]:
    """A label for each class that tells classes of one name apart: the position where it must."""
    names = [entry.name for entry in classes]
    return tuple(
        name if names.count(name) == 1 else str(position) for position, name in enumerate(names)
    )


def _unmatched(found: FoundImages, task: Task, labels: Sequence[int]) -> ConfigError:
    assert found.names is not None
    assert task.classes is not None
    if not labels:
        return ConfigError(
            f"{task.name} ({found.source}): two of its {len(found.names)} classes are one class of "
            f"the task; put a classes.csv with the columns folder and class beside them"
        )
    names = [found.names[label].name for label in labels]
    close = difflib.get_close_matches(names[0], [entry.name for entry in task.classes], n=1)
    hint = f"; the nearest to {names[0]!r} is {close[0]!r}" if close else ""
    shown = ", ".join(repr(name) for name in names[:5])
    return ConfigError(
        f"{task.name} ({found.source}): {len(names)} of its {len(found.names)} classes are none of "
        f"the task's {len(task.classes)}: {shown}{', …' if len(names) > 5 else ''}{hint}; rename "
        "them, or put a classes.csv with the columns folder and class beside them"
    )
