"""A list of classes, and the line that says what was read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cit_curate.metadata.lines import MetadataEntry, merge_entries

_NAMES_SHOWN = 3
_MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """The classes of a file or of a built-in list, and what a person should know about them.

    Attributes:
        name: The file, or the name of the built-in list.
        entries: The classes, in the order of the list; equal names stay apart until `merged`.
        notes: What the reader took for granted, such as `no header: the first line is a class`.
        warnings: What is probably not meant.
    """

    name: str
    entries: tuple[MetadataEntry, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines for a person: what was read, and the warnings."""
        line = class_line(self.name, [entry.name for entry in self.entries])
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return (f"{line}{notes}", *(f"WARNING: {warning}" for warning in self.warnings))

    def merged(self) -> "ClassList":
        """The list with one entry for each name, and a warning if one was repeated."""
        counts = Counter(entry.name for entry in self.entries)
        repeated = [name for name, count in counts.items() if count > 1]
        if not repeated:
            return self
        entries = tuple(merge_entries(self.entries))
        warning = f"{self.name}: {_merged(repeated)}"
        return replace(self, entries=entries, warnings=(*self.warnings, warning))


def class_line(name: str, classes: Sequence[str]) -> str:
    """One line with a list's name, its number of classes and the first ones.

    `classes.txt: 6 classes: teapot, boat, cat, …`
    """
    shown = [shortened(each) for each in classes[:_NAMES_SHOWN]]
    more = ["…"] if len(classes) > _NAMES_SHOWN else []
    what = "1 class" if len(classes) == 1 else f"{len(classes):,} classes"
    return f"{name}: {what}: {', '.join([*shown, *more])}"


def shortened(text: str) -> str:
    """A text as it fits into a message."""
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 1]}…"


def _merged(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{shortened(names[0])!r} is repeated; its occurrences are merged"
    shown = ", ".join(repr(shortened(name)) for name in names[:5])
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return f"repeated names are merged: {shown}{more}"
