"""The columns of a table that make the pairs, for wide and for long tables."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from cit_curate.errors import ConfigError
from cit_curate.records import PAIR_COLUMNS, text_key_of

# The text keys of a caption column with lists, which readers make up.
LIST_KEY = "__list_key__"
RESERVED_COLUMNS = (*PAIR_COLUMNS, "caption_hash", "text_fixed")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table that a pool is made from.

    A *wide* table has a row per image and a column per text (`text`); a *long* one has a row per
    text (`caption`, and `text_key`, without which every row's key is the caption column's name, and
    that of a list of texts is `caption`).

    Attributes:
        image_id: The column of image ids; None = the ids `{source}/{row}`, the row from 0 with 8
            digits.
        image: The column of image paths or URLs; None for a pool without images.
        text: Wide: the text columns. Each cell that is not empty becomes a pair, whose text key is
            the column's name. A cell may be a list of texts.
        text_key: Long: the column of text keys.
        caption: Long: the column of texts, or of lists of texts.
        extra: Further columns to copy into the pool unchanged.

    Raises:
        ConfigError: The two forms are mixed, `text_key` lacks its `caption`, or two columns clash.
    """

    image_id: str | None = "image_id"
    image: str | None = None
    text: tuple[str, ...] = ()
    text_key: str | None = None
    caption: str | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.text and (self.caption or self.text_key):
            raise ConfigError(
                "--text is for wide tables, --text-key and --caption for long ones: give either"
            )
        if self.text_key and not self.caption:
            raise ConfigError(f"--text-key {self.text_key} needs --caption COLUMN beside it")
        keys: dict[str, str] = {}
        for name in self.text:
            key = _text_key(name)
            if key in keys:
                both = f"{keys[key]!r} and {name!r}"
                raise ConfigError(f"columns {both} both make the text key {key!r}")
            keys[key] = name
        for name in self.extra:
            if name in RESERVED_COLUMNS:
                raise ConfigError(f"--extra {name}: the pool has a column of that name already")
        if len(set(self.extra)) != len(self.extra):
            raise ConfigError(f"--extra names a column twice: {', '.join(self.extra)}")

    @property
    def texts(self) -> tuple[tuple[str, str], ...]:
        """(text key, column) of each text column; empty for a long table with a key column."""
        if self.caption and not self.text_key:
            return ((_text_key(self.caption), self.caption),)
        return tuple((_text_key(name), name) for name in self.text)

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read as text, each once."""
        chosen = (self.image_id, self.image, self.text_key, self.caption, *self.text)
        return tuple(dict.fromkeys(name for name in chosen if name))

    def may_be_list(self, name: str) -> bool:
        """Whether a cell of a column may be a list of texts: of one that is read as text alone."""
        others = (self.image_id, self.image, self.text_key)
        return name in (self.caption, *self.text) and name not in others

    def with_list_key(self) -> "Columns":
        """The columns, with the text key column `LIST_KEY` where captions have no other."""
        if not self.caption or self.text_key:
            return self
        return replace(self, text_key=LIST_KEY)

    def list_key(self, *, is_list: bool) -> str:
        """The cell of `LIST_KEY` for a caption, or for a list of captions."""
        assert self.caption is not None
        return "caption" if is_list else _text_key(self.caption)

    def found_in(self, existing: Sequence[str], where: object, advice: str = "") -> "Columns":
        """The columns, with `image_id` None if the table has none and none was named.

        Args:
            existing: The table's columns.
            where: The table's name in the message.
            advice: More for a message about a missing column.

        Raises:
            ConfigError: A column is missing or ambiguous, or no text column was chosen. The message
                names the file, the column, the existing columns and the nearest spelling.
        """
        columns = self
        if self.image_id == Columns.image_id and self.image_id not in existing:
            columns = replace(self, image_id=None)
        listed = ", ".join(existing)
        if not self.text and not self.caption:
            raise ConfigError(
                f"{where}: say where the texts are, with --text COLUMN,COLUMN (a row per image) or "
                f"--text-key COLUMN --caption COLUMN (a row per text); its columns are {listed}"
                f"{peek_hint(where)}"
            )
        for name in (*columns.names, *columns.extra):
            count = list(existing).count(name)
            if count > 1:
                raise ConfigError(f"{where} has {count} columns named {name!r}; rename all but one")
            if count == 0:
                near = difflib.get_close_matches(name, existing, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                hint = f"; {advice}" if advice else hint
                raise ConfigError(
                    f"{where} has no column {name!r}; it has {listed}{hint}{peek_hint(where)}"
                )
        return columns


def peek_hint(where: object) -> str:
    """The end of a message about a source that could not be read as it was asked for."""
    return f"; see how it would be read with: cit pool build {where} --peek"


def is_list(kind: pa.DataType) -> bool:
    """Whether each cell of a column is a list of values."""
    types = pa.types
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def column_kind(kind: pa.DataType) -> str:
    """`text` or `whole number` for the types that are read alike, else the name of the type."""
    if pa.types.is_dictionary(kind):
        return column_kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind):
        return "whole number"
    return str(kind)


def _text_key(name: str) -> str:
    try:
        return text_key_of(name)
    except ValueError as error:
        raise ConfigError(f"column {name!r} cannot name a text key: {error}") from error
