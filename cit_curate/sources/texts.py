"""The texts of source rows: cleaned and hashed a column at a time, odd values one by one.

Byte patterns find the texts that the plain functions would leave unchanged. Only the others go
through the plain functions. The tests compare every result with theirs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import arrow_of, numpy_of
from cit_curate.captions import (
    MAX_CAPTION_BYTES,
    cleaner,
    cut_at_bytes,
    is_blank,
    is_unseen,
    replace_bad_text,
    without_tags_and_links,
)
from cit_curate.config import Cleaning
from cit_curate.records import Bool, Int64
from cit_curate.sources.rows import texts_of_cells

# Byte patterns that Arrow searches for in the cells of `rows.cells_of`.
_NOT_UTF8 = r"\xed[\xa0-\xbf]"
# Only a text that starts with a comma, markup, a web address or something unseen can be empty.
# Markup may stand between the letters of an address.
_MAY_BE_EMPTY = (
    r"^(?:[<,\s\x00-\x1f\x7f]|h[t<]|w[w<]"
    r"|\xc2[\x80-\xa0\xad]|\xcd\x8f|\xd8\x9c|\xe1\x85[\x9f\xa0]|\xe1\x9a\x80|\xe1\x9e[\xb4\xb5]"
    r"|\xe1\xa0[\x8b-\x8f]|\xe2\x80[\x80-\xaf]|\xe2\x81[\x9f-\xaf]|\xe2\xa0\x80|\xe3\x80\x80"
    r"|\xe3\x85\xa4|\xef\xb8[\x80-\x8f]|\xef\xbb\xbf|\xef\xbe\xa0|\xef\xbf[\xb9-\xbb]|\xf3\xa0)"
)


@dataclass(frozen=True)
class Texts:
    """The texts of some rows.

    Attributes:
        row: int64 [texts], the row of each text.
        columns: The columns of `rows.TEXT_FIELDS`.
        fixed: The row of each text that was mended or cut, and what it was.
        repeats_key: Whether a row has several texts of one key.
    """

    row: Int64
    columns: list[pa.Array]
    fixed: list[tuple[int, str]]
    repeats_key: bool


def texts_of(
    columns: Sequence[pa.Array], keys: Sequence[pa.Array], is_good: Bool, clean: Cleaning
) -> Texts:
    """The cleaned texts of some columns, row by row, without the empty ones.

    Args:
        columns: The cells of each text column, or its lists of cells.
        keys: The text key of each row, column by column.
        is_good: bool [rows], the rows to read.
        clean: The named cleaning.
    """
    per_row = [_cells_per_row(column) for column in columns]
    row = np.concatenate([np.repeat(np.arange(len(is_good)), counts) for counts in per_row])
    every_key = pa.concat_arrays(
        [
            key.take(arrow_of(np.repeat(np.arange(len(key)), counts)))
            for key, counts in zip(keys, per_row, strict=True)
        ]
    )
    flat = [column.flatten() if _has_lists(column) else column for column in columns]
    cells = pa.concat_arrays([column.cast(pa.large_binary()) for column in flat])
    lengths = numpy_of(pc.binary_length(cells))
    keep = (lengths > 0) & is_good[row]
    if clean == "none":
        odd = (lengths > MAX_CAPTION_BYTES) | matches(cells, _MAY_BE_EMPTY)
        if any(pa.types.is_large_binary(column.type) for column in flat):
            odd |= matches(cells, _NOT_UTF8)
        odd &= keep
    else:
        odd = keep.copy()
    fixed = np.zeros(len(cells), np.bool_)
    indices = np.flatnonzero(odd)
    taken = arrow_of(indices)
    raw = texts_of_cells(cells.take(taken))
    cleaned = [
        seen_text(cell, key, cleaner(clean))
        for cell, key in zip(raw, every_key.take(taken).to_pylist(), strict=True)
    ]
    keep[indices] = [text is not None for text, _ in cleaned]
    fixed[indices] = [was_fixed for _, was_fixed in cleaned]
    cells = replaced(cells, odd, [text or "" for text, _ in cleaned])
    order = np.argsort(row, kind="stable")
    order = order[keep[order]]
    taken = arrow_of(order)
    captions = cells.take(taken)
    hashes = np.frombuffer(b"".join(digests(captions.to_pylist())), "<u8")
    values = [every_key.take(taken), captions.cast(pa.string()), hashes, fixed[order]]
    noted = [
        (int(row[index]), cell)
        for index, cell, (text, was_fixed) in zip(indices, raw, cleaned, strict=True)
        if was_fixed and text is not None
    ]
    column = np.repeat(np.arange(len(columns)), [counts.sum() for counts in per_row])
    same = (np.diff(row[order]) == 0) & (np.diff(column[order]) == 0)
    return Texts(
        row=row[order],
        columns=[*values[:2], *map(arrow_of, values[2:])],
        fixed=noted,
        repeats_key=bool(same.any()),
    )


def _has_lists(column: pa.Array) -> bool:
    return bool(pa.types.is_large_list(column.type))


def _cells_per_row(column: pa.Array) -> Int64:
    """int64 [rows]: the cells of each row of a column, of which only lists have not one."""
    if _has_lists(column):
        return numpy_of(column.value_lengths())
    return np.ones(len(column), np.int64)


def cleaned_text(cell: str, text_key: str, clean: Callable[[str], str]) -> tuple[str | None, bool]:
    """A text as the pool stores it, None if it is empty; and whether it was mended or cut."""
    text, was_bad = replace_bad_text(cell)
    text, was_cut = cut_at_bytes(clean(text))
    return (None if _is_empty(text, text_key) else text), was_bad or was_cut


def seen_text(cell: str, text_key: str, clean: Callable[[str], str]) -> tuple[str | None, bool]:
    """As `cleaned_text`; a text without anything that is seen counts as empty too."""
    text, was_fixed = cleaned_text(cell, text_key, clean)
    return (None if text is None or is_unseen(text) else text), was_fixed


def digests(texts: Sequence[bytes]) -> Iterator[bytes]:
    """The caption hash of each text, as in `PAIR_FIELDS`: 8 bytes."""
    # Copying a new hash takes half the time of making one from its arguments.
    new_hash = blake2b(digest_size=8).copy
    for text in texts:
        hashed = new_hash()
        hashed.update(text)
        yield hashed.digest()


def _is_empty(text: str, key: str) -> bool:
    """True for a blank text, and for one that consists of markup and web addresses only."""
    if is_blank(text, key):
        return True
    # Such a text starts with one of these. Nine in ten texts do not, and are not searched.
    may_be_empty = text[0] in "<hw," or text[0].isspace()
    return may_be_empty and is_blank(without_tags_and_links(text), key)


def matches(cells: pa.Array, pattern: str) -> Bool:
    """Whether each cell contains a byte pattern: bool [cells]."""
    return numpy_of(pc.match_substring_regex(cells, pattern))


def replaced(cells: pa.Array, mask: Bool, texts: Sequence[str]) -> pa.Array:
    """The cells, large_binary, replaced by the texts where `mask` is true."""
    if not texts:
        return cells
    encoded = pa.array([text.encode() for text in texts], pa.large_binary())
    return pc.replace_with_mask(cells, arrow_of(mask), encoded)
