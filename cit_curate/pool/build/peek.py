"""`cit pool build SOURCE --peek`: how a source would be read, from nothing but its beginning."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.sources.columns import Columns, peek_hint
from cit_curate.sources.pairs import pairs_of
from cit_curate.sources.sample import SourceSample, guessed_columns, sample_source
from cit_curate.sources.source import Source, open_source

_MAX_SOURCES = 3
_NUM_PAIRS = 3
_MAX_SHOWN_CHARS = 60


@dataclass(frozen=True)
class Peek:
    """How a source would be read.

    Attributes:
        source: The source.
        sample: Its beginning.
        columns: The columns that it would be read with.
        flags: The flags that say so.
        pairs: Its first pairs: image id, text key, caption and image.
        rejects: The reasons of the rejects before the last of these pairs.
        notes: The guesses of the reader.
        problem: Why no pair could be read; "" if one could.
    """

    source: Source
    sample: SourceSample
    columns: Columns
    flags: tuple[str, ...]
    pairs: tuple[dict[str, str], ...] = ()
    rejects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def command(self) -> str:
        """The command that builds a pool of it."""
        path = shlex.quote(self.source.url or str(self.source.path))
        return " ".join(["cit pool build", path, *map(shlex.quote, self.flags), "--out POOL"])

    def as_json(self) -> dict[str, Any]:
        """The values of `--peek --json`."""
        return {
            "source": self.source.name,
            "path": self.source.url or str(self.source.path),
            "format": self.source.format,
            **self.sample.facts,
            "columns": [asdict(column) for column in self.sample.columns],
            "read_as": asdict(self.columns),
            "pairs": list(self.pairs),
            "rejects": list(self.rejects),
            "notes": list(self.notes),
            "problem": self.problem,
            "command": self.command,
        }

    def lines(self) -> list[str]:
        """The same for people."""
        facts = [f"{name} {value}" for name, value in self.sample.facts.items()]
        lines = [f"{self.source.name}: {', '.join([self.source.format, *facts])}"]
        if self.sample.columns:
            lines.append(f"columns: {len(self.sample.columns)}")
        for column in self.sample.columns:
            examples = ", ".join(_shown(example) for example in column.examples)
            lines.append(f"  {column.name} ({column.kind}): {examples or 'no value'}")
        lines += self.notes
        if self.problem:
            lines.append(f"not read: {self.problem}")
        if self.pairs:
            lines.append("first pairs (image id, text key, caption, image):")
        for pair in self.pairs:
            shown = [pair["image_id"], pair["text_key"], _shown(pair["caption"])]
            lines.append("  " + "  ".join([*shown, pair["image_uri"] or "no image"]))
        lines += [f"rejected: {reject}" for reject in self.rejects[:_NUM_PAIRS]]
        return [*lines, "build the pool with, or with other flags:", f"  {self.command}"]


def peek(
    sources: Sequence[Source], columns: Columns, flags: Sequence[str]
) -> tuple[list[Peek], int]:
    """How the first sources would be read, and the number of all.

    Args:
        sources: The sources.
        columns: The columns that were asked for.
        flags: Flags of the command that was given, but for those of columns and `ReadConfig`.

    Raises:
        ConfigError, BadInputError, DamagedError: See `sample_source`.
    """
    return [_peek(source, columns, flags) for source in sources[:_MAX_SOURCES]], len(sources)


def _peek(source: Source, columns: Columns, given: Sequence[str]) -> Peek:
    sample = sample_source(source)
    source = replace(source, reading=sample.reading or source.reading)
    if not sample.has_own_columns:
        columns = guessed_columns(columns, sample.columns)
    flags = (*given, *_reading_flags(source), *_column_flags(columns, sample))
    found = Peek(source, sample, columns, flags)
    try:
        reader = open_source(source, columns)
        rows = next(reader.read(), None) if reader.read else None
    except (ConfigError, DamagedError) as error:
        return replace(found, problem=str(error).removesuffix(peek_hint(source.path)))
    if reader.columns is None:
        return found
    if rows is None:
        return replace(found, problem="it has no row")
    raw = pairs_of(rows, reader.columns, image_root=source.image_root, source=source.name)
    kept = ("image_id", "text_key", "caption", "image_uri")
    return replace(
        found,
        pairs=tuple(raw.pairs.slice(0, _NUM_PAIRS).select(kept).to_pylist()),
        rejects=tuple(
            f"row {reject.row}, {reject.reason}: {reject.detail}"
            for reject in raw.rejects[:_NUM_PAIRS]
        ),
        notes=reader.notes,
    )


def _column_flags(columns: Columns, sample: SourceSample) -> list[str]:
    names = {column.name for column in sample.columns}
    values = {
        "--image-id": columns.image_id if columns.image_id != Columns.image_id else None,
        "--image": columns.image,
        "--text-key": columns.text_key,
        "--caption": columns.caption,
    }
    flags = [word for flag, name in values.items() if name in names for word in (flag, name)]
    return [*flags, "--text", ",".join(columns.text)] if columns.text else flags


def _reading_flags(source: Source) -> list[str]:
    changed = source.reading.changed
    return [
        word
        for name, value in changed.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
