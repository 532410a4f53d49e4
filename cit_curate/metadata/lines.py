"""The lines of a list of class names: `name | synonym`, and comments that begin with `#`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class MetadataEntry:
    """One concept of interest: a name, and further names for it.

    Attributes:
        name: Its name in the ledger and the report.
        synonyms: Further names; the entry's vector is the mean over the vectors of all its names.
        prompts: Texts with `{}` for the name, used instead of the run's templates; empty = the
            templates.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)

    def texts(self, templates: Sequence[str]) -> list[str]:
        """Every name in every prompt, or else in every template; their vectors are averaged."""
        prompts = self.prompts or templates
        return [prompt.replace("{}", name) for name in self.names for prompt in prompts]


def parse_entries(lines: Iterable[str], *, comments: bool = True) -> list[MetadataEntry]:
    """The entries of `name | synonym | …` lines, without blank ones and `#` comments.

    White space inside a name counts as one space. Entries with equal names stay apart.
    """
    entries = []
    for line in lines:
        if comments and is_comment(line):
            continue
        names = [" ".join(name.split()) for name in line.split("|")]
        names = list(dict.fromkeys(name for name in names if name))
        if names:
            entries.append(MetadataEntry(names[0], tuple(names[1:])))
    return entries


def is_comment(line: str) -> bool:
    """Whether a line is a comment, which begins with `#`."""
    return line.lstrip().startswith("#")


def format_entry(entry: MetadataEntry) -> str:
    """The line that `parse_entries` reads as this entry, without its prompts."""
    line = " | ".join(entry.names)
    # The empty name in front keeps `#1 fan` from being read as a comment.
    return f"| {line}" if line.startswith("#") else line


def merge_entries(entries: Iterable[MetadataEntry]) -> list[MetadataEntry]:
    """Merge entries with the same name: one each, with all of their synonyms and prompts.

    Identical texts have the same vector, of which a search only ever finds the first; and ledger
    and report identify an entry by its name.

    Returns:
        Entries with distinct names, in the order of their first occurrence.
    """
    merged: dict[str, MetadataEntry] = {}
    for entry in entries:
        known = merged.get(entry.name)
        if known is not None:
            names = dict.fromkeys((*known.names, *entry.synonyms))
            prompts = dict.fromkeys((*known.prompts, *entry.prompts))
            entry = replace(known, synonyms=tuple(names)[1:], prompts=tuple(prompts))
        merged[entry.name] = entry
    return list(merged.values())
