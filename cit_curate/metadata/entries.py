"""Metadata entries from a file of one's own, and the texts that are embedded for them."""

import csv
import difflib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cit_curate.config import MetadataConfig
from cit_curate.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetadataEntry:
    """One thing somebody cares about: a name, and further names for the same thing."""

    name: str
    synonyms: tuple[str, ...] = ()

    def texts(self, templates: Sequence[str]) -> list[str]:
        """Every name in every template; their vectors are averaged to the entry's."""
        names = (self.name, *self.synonyms)
        return [template.replace("{}", name) for name in names for template in templates]


def load_metadata(config: MetadataConfig) -> list[MetadataEntry]:
    """The entries of a metadata file; an entry that comes again is merged with the first.

    Raises:
        ConfigError: No file was given, it is missing or empty, or the column is not in it.
    """
    if not config.metadata:
        raise ConfigError("--metadata is missing: give a file with one class name a line")
    path = Path(config.metadata)
    if not path.is_file():
        raise ConfigError(f"--metadata: there is no file {path}")
    if config.metadata_column or path.suffix in (".csv", ".tsv"):
        lines = _column(path, config.metadata_column)
    else:
        lines = read_utf8(path).splitlines()
    entries = parse_entries(lines)
    if not entries:
        raise ConfigError(f"{path} holds no class name; write one a line")
    return entries


def parse_entries(lines: Iterable[str]) -> list[MetadataEntry]:
    """Entries of `name | synonym | …` lines, but for blank ones and `#` comments."""
    entries: dict[str, MetadataEntry] = {}
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        names = [" ".join(name.split()) for name in line.split("|")]
        names = list(dict.fromkeys(name for name in names if name))
        if not names:
            continue
        entry = MetadataEntry(names[0], tuple(names[1:]))
        known = entries.get(entry.name)
        if known is not None:
            logger.warning("metadata entry %r comes twice; the two are merged", entry.name)
            further = (name for name in entry.synonyms if name not in known.synonyms)
            entry = MetadataEntry(entry.name, (*known.synonyms, *further))
        entries[entry.name] = entry
    return list(entries.values())


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        ConfigError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error


def _column(path: Path, column: str) -> list[str]:
    with io.StringIO(read_utf8(path), newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        names = list(reader.fieldnames or [])
        if not column and len(names) == 1:
            column = names[0]
        if column not in names:
            close = difflib.get_close_matches(column, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"--metadata-column: {path} has no column {column!r}; "
                f"it has {', '.join(names) or 'none'}{hint}"
            )
        return [row[column] or "" for row in reader]
