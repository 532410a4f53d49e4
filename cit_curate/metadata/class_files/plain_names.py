"""Names one a line, without the numbers, ids, bullets and quotes that stand around all of them.

What stands around a name is left out only where every line has it, and the notes say so. Where only
some have it, the lines are read as they are, with a warning.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cit_curate.metadata.class_files.formats import refuse_other_formats
from cit_curate.metadata.class_list import ClassList, shortened
from cit_curate.metadata.lines import MetadataEntry, parse_entries

HEADER_WORDS = frozenset(
    {"name", "names", "class", "classes", "class_name", "classname", "label", "labels"}
    | {"category", "text", "title", "entry", "synset"}
)

_BULLET = re.compile(r"[-*+•‣·–]\s+(?=\S)")
_WORDNET_ID = re.compile(r"[nvars]\d{8}(?:\s*[:,;=|]\s*|\s+)(?=\S)")
# `0: a`, `1. a`, `2) a`, `3,a`, `4 - a`, `5<tab>a`; but not `1.5 a` and `10:30`.
_CLEAR_NUMBER = re.compile(
    r"\(?(\d{1,7})(?:\s*[.):,;=](?:\s+|(?=\D))|\s+(?:->|[-–])\s+|[ ]*\t\s*)(?=[^\s|])"
)
_NUMBER = re.compile(r"(\d{1,7})\s+(?=[^\s|])")
_LAST_NUMBER = re.compile(r"\S[\s,:;]+(\d{1,7})$")
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}
_SEPARATORS = ",;"
# More commas than a name has, such as "Bonaire, Saint Eustatius and Saba".
_MANY_SEPARATORS = 4


@dataclass(frozen=True)
class _Stripped:
    """Lines without what stood around all of them, and what that was."""

    lines: list[str]
    note: str


def plain_names(lines: Sequence[str], path: Path) -> ClassList:
    """The names of lines, each a `name | synonym | …`.

    Args:
        lines: Without blank lines and comments, and without blanks around them.
        path: The file, for messages.

    Raises:
        ConfigError: Without their bullets the lines are YAML, or a list of Python.
    """
    names, notes = list(lines), list[str]()
    for strip in (_bullets, _numbers, _wordnet_ids, _numbers, _quotes, _commas, _quotes):
        stripped = strip(names)
        if stripped is not None:
            names, notes = stripped.lines, [*notes, stripped.note]
    if names != lines:
        refuse_other_formats(names, path)
    entries = tuple(parse_entries(names, comments=False))
    warnings = tuple(f"{path}: {doubt}" for doubt in _doubts(names))
    return ClassList(
        name=str(path), entries=entries, notes=tuple(dict.fromkeys(notes)), warnings=warnings
    )


def joined_names(name: str, entries: Sequence[MetadataEntry]) -> tuple[str, ...]:
    """The warning about a single class whose name is probably a whole list of names."""
    text = entries[0].name if len(entries) == 1 else ""
    number = max((text.count(mark), mark) for mark in _SEPARATORS)
    if not number[0]:
        return ()
    what = "comma" if number[1] == "," else "semicolon"
    ending = "" if number[0] == 1 else "s"
    return (
        f"{name}: one class whose name holds {number[0]:,} {what}{ending}; put one name a line",
    )


def _bullets(lines: list[str]) -> _Stripped | None:
    if not _all(_BULLET.match, lines) or len({line[0] for line in lines}) > 1:
        return None
    return _Stripped([_BULLET.sub("", line, count=1) for line in lines], "bullets left out")


def _wordnet_ids(lines: list[str]) -> _Stripped | None:
    if not _all(_WORDNET_ID.match, lines):
        return None
    named = [_WORDNET_ID.sub("", line, count=1) for line in lines]
    # In WordNet no lemma holds a comma.
    lemmas = [re.sub(r"\s*,\s*", " | ", line) for line in named]
    return _Stripped(lemmas, "WordNet ids left out; further names after a comma are synonyms")


def _numbers(lines: list[str]) -> _Stripped | None:
    """The lines without running numbers, if there is no doubt that they count the lines.

    `1 cup, 2 cups, 3 cups` are names: behind a mere blank the names must differ by more.
    """
    if len(lines) < 2:
        return None
    for pattern in (_CLEAR_NUMBER, _NUMBER):
        matches = [pattern.match(line) for line in lines]
        numbers = [int(match[1]) for match in matches if match]
        if len(numbers) < len(lines) or not _are_running(numbers):
            continue
        named = [line[match.end() :] for line, match in zip(lines, matches, strict=True) if match]
        if pattern is _NUMBER:
            differing = {line.lower().rstrip("s") for line in named}
            if len(lines) < 3 or numbers[0] > 1 or len(differing) < len(lines):
                continue
        note = f"running numbers {numbers[0]} to {numbers[-1]:,} left out"
        return _Stripped(named, note)
    return None


def _quotes(lines: list[str]) -> _Stripped | None:
    unquoted = [_unquoted(line) for line in lines]
    inside = [text for text in unquoted if text is not None]
    return _Stripped(inside, "quotes left out") if len(inside) == len(lines) else None


def _commas(lines: list[str]) -> _Stripped | None:
    marks = {line[-1] for line in lines[:-1]}
    if len(marks) != 1 or not marks <= {*_SEPARATORS}:
        return None
    mark = marks.pop()
    named = [line.removesuffix(mark).rstrip() for line in lines]
    if not all(named) or any(mark in line for line in named):
        return None
    return _Stripped(named, f"{'commas' if mark == ',' else 'semicolons'} at the ends left out")


def _unquoted(line: str) -> str | None:
    line = line.rstrip(_SEPARATORS).rstrip()
    closing = _QUOTES.get(line[:1])
    inside = line[1:-1].strip()
    if closing is None or len(line) < 3 or line[-1] != closing or not inside:
        return None
    return None if {line[0], line[-1], "\\"} & {*inside} else inside


def _doubts(lines: Sequence[str]) -> list[str]:
    """What is probably not meant in lines that are read as they are."""
    if len(lines) < 2:
        return []
    doubts = []
    if lines[0].lower() in HEADER_WORDS:
        doubts.append(f"the first line, {lines[0]!r}, is read as a class and not as a header")
    if _all(_NUMBER.match, lines) or _all(_CLEAR_NUMBER.match, lines):
        doubts.append(_stays("every line begins with a number", lines))
    elif _end_in_running_numbers(lines):
        doubts.append(_stays("the lines end in running numbers", lines))
    elif all(re.match(r"\d+\s*\|", line) for line in lines):
        doubts.append(f"every name is a number, and what follows | is its synonym: {lines[0]!r}")
    doubts += _of_some(lines, lambda line: "\t" in line, "hold a tab")
    doubts += _of_some(lines, _WORDNET_ID.match, "begin with a WordNet id")
    doubts += _of_some(lines, _BULLET.match, "begin with a bullet")
    doubts += _of_some(lines, _unquoted, "are in quotes")
    doubts += _of_some(lines, lambda line: line[-1] in _SEPARATORS, "end with a comma or semicolon")
    separators = [max(map(line.count, _SEPARATORS)) for line in lines]
    num_holding = sum(count > 0 for count in separators)
    if 2 * num_holding >= len(lines) or max(separators) >= _MANY_SEPARATORS:
        example = lines[max(range(len(lines)), key=separators.__getitem__)]
        doubts.append(
            f"{num_holding:,} of {len(lines):,} names hold commas or semicolons, such as "
            f"{shortened(example)!r}: put one name a line, synonyms after |"
        )
    if all(": " in line for line in lines):
        doubts.append(_stays("every line holds a colon", lines))
    return doubts


def _of_some(lines: Sequence[str], has: Callable[[str], object], what: str) -> list[str]:
    found = [line for line in lines if has(line)]
    if not found:
        return []
    return [_stays(f"{len(found):,} of {len(lines):,} lines {what}", found)]


def _stays(what: str, lines: Sequence[str]) -> str:
    return f"{what}, such as {shortened(lines[0])!r}, and all of it is read as the name"


def _end_in_running_numbers(lines: Sequence[str]) -> bool:
    ends = [_LAST_NUMBER.search(line[-20:]) for line in lines]
    numbers = [int(end[1]) for end in ends if end]
    return len(numbers) == len(lines) and _are_running(numbers)


def _are_running(numbers: Sequence[int]) -> bool:
    return all(after == before + 1 for before, after in pairwise(numbers))


def _all(has: Callable[[str], object], lines: Sequence[str]) -> bool:
    return bool(lines) and all(map(has, lines))
