"""Class names: equal but for case and punctuation, in natural order, or nothing but numbers."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from cit_curate.metadata.entries import MetadataEntry

__all__ = ["find_name", "in_natural_order", "key_positions", "name_key", "numbering", "some"]

# What may stand before the number in the name of a numbered class folder.
_NUMBERED = re.compile(r"((?:class|label|cls|category|c|id|type|group)?[-_ ]?)(\d{1,9})", re.I)


def in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names sorted; if all are numbered, by their numbers: 0, 1, 2, …, 10."""
    ordered = sorted(names)
    numbers = numbering(ordered)
    if numbers is None:
        return tuple(ordered)
    return tuple(name for _, name in sorted(zip(numbers, ordered, strict=True)))


def numbering(names: Sequence[str]) -> list[int] | None:
    """The numbers of names such as `7`, `007` or `class_7`; None where a name is no such number."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    prefixes = {match[1] if match else None for match in matches}
    if None in prefixes or len(prefixes) != 1:
        return None
    return [int(match[2]) for match in matches if match]


def key_positions(classes: Sequence[MetadataEntry]) -> dict[str, int]:
    """The position of each key; first names outrank synonyms, ambiguous names are left out.

    ImageNet has two cranes and two maillots, which only their identifiers distinguish.
    """
    first: dict[str, list[int]] = {}
    further: dict[str, list[int]] = {}
    for position, entry in enumerate(classes):
        first.setdefault(name_key(entry.name), []).append(position)
        for synonym in entry.synonyms:
            further.setdefault(name_key(synonym), []).append(position)
    merged = {**further, **first}
    return {key: owners[0] for key, owners in merged.items() if len(owners) == 1}


def find_name(
    name: str, positions: Mapping[str, int], aliases: Mapping[str, str] | None = None
) -> int | None:
    """The position of a name by its key, with or without a number before it (`001.Gull`)."""
    for text in (name, re.sub(r"^\d+\.", "", name)):
        key = name_key(text)
        position = positions.get(key, positions.get((aliases or {}).get(key, "")))
        if position is not None:
            return position
    return None


def name_key(name: str) -> str:
    """The letters and digits of a name, in lower case and without accents."""
    plain = unicodedata.normalize("NFKD", name).lower()
    return "".join(char for char in plain if char.isalnum())


def some(names: Sequence[str]) -> str:
    """The first names, for messages."""
    shown = ", ".join(names[:5]) or "none"
    return f"{shown}, …" if len(names) > 5 else shown
