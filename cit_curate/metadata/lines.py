"""The metadata file: one entry a line, synonyms after `|`, comments that begin with `#`."""

import csv
import difflib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cit_curate.errors import ConfigError

logger = logging.getLogger(__name__)


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


def read_entries(path: Path, column: str = "") -> list[MetadataEntry]:
    """The entries of a metadata file, or of a column of a CSV or TSV.

    A cell is read like a line of a metadata file, but never as a comment: `#1 fan` is an entry.

    Raises:
        ConfigError: The file is not readable text, has no such column, or holds no entry.
    """
    is_table = bool(column) or path.suffix in (".csv", ".tsv")
    lines = _column(path, column) if is_table else read_utf8(path).splitlines()
    entries = parse_entries(lines, comments=not is_table)
    if not entries:
        raise ConfigError(f"{path} holds no class name; write one a line")
    return entries


def parse_entries(lines: Iterable[str], *, comments: bool = True) -> list[MetadataEntry]:
    """The entries of `name | synonym | …` lines, without blank ones and `#` comments.

    White space inside a name counts as one space. A repeated entry is merged with the first, and a
    warning says so.
    """
    entries = []
    for line in lines:
        if comments and line.lstrip().startswith("#"):
            continue
        names = [" ".join(name.split()) for name in line.split("|")]
        names = list(dict.fromkeys(name for name in names if name))
        if names:
            entries.append(MetadataEntry(names[0], tuple(names[1:])))
    return merge_entries(entries, warn=True)


def format_entry(entry: MetadataEntry) -> str:
    """The line that `parse_entries` reads as this entry, without its prompts."""
    line = " | ".join(entry.names)
    # The empty name in front keeps `#1 fan` from being read as a comment.
    return f"| {line}" if line.startswith("#") else line


def merge_entries(entries: Iterable[MetadataEntry], *, warn: bool = False) -> list[MetadataEntry]:
    """Merge entries with the same name: one each, with all of their synonyms and prompts.

    Identical texts have the same vector, of which a search only ever finds the first; and ledger
    and report identify an entry by its name.

    Args:
        entries: Any number of entries.
        warn: Log a warning that lists the repeated names.

    Returns:
        Entries with distinct names, in the order of their first occurrence.
    """
    merged: dict[str, MetadataEntry] = {}
    repeated = []
    for entry in entries:
        known = merged.get(entry.name)
        if known is not None:
            repeated.append(entry.name)
            names = dict.fromkeys((*known.names, *entry.synonyms))
            prompts = dict.fromkeys((*known.prompts, *entry.prompts))
            entry = replace(known, synonyms=tuple(names)[1:], prompts=tuple(prompts))
        merged[entry.name] = entry
    if repeated and warn:
        _warn_of_merged(list(dict.fromkeys(repeated)))
    return list(merged.values())


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        ConfigError: The file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error


def _warn_of_merged(names: list[str]) -> None:
    if len(names) == 1:
        logger.warning("metadata entry %r is repeated; its occurrences are merged", names[0])
        return
    shown = ", ".join(map(repr, names[:5]))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    logger.warning("repeated metadata entries are merged: %s%s", shown, more)


def _column(path: Path, column: str) -> list[str]:
    with io.StringIO(read_utf8(path), newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            names = list(reader.fieldnames or [])
            if not column and len(names) == 1:
                column = names[0]
            if not column and names:
                raise ConfigError(
                    f"{path}: name the column with the class names; it has {', '.join(names)}"
                )
            if column not in names:
                close = difflib.get_close_matches(column, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(
                    f"{path} has no column {column!r}; it has {', '.join(names) or 'none'}{hint}"
                )
            return [row[column] or "" for row in reader]
        except csv.Error as error:
            raise ConfigError(
                f"{path}, after line {reader.line_num}: not a table: {error}"
            ) from error
