"""The three texts of a YFCC image, cleaned as `captions.clean_text` does it, a block at a time.

A block's bytes are URL-decoded at once, and most texts need no more than that. The others are
looked at one by one. The tests hold every result to the plain functions in `captions`.
"""

import numpy as np
import pyarrow as pa

from cit_curate.arrow_numpy import arrow_of, strings_of
from cit_curate.captions import (
    MAX_CAPTION_BYTES,
    MAX_RAW_CHARS,
    cleaner,
    cut_at_bytes,
    is_blank,
    replace_bad_text,
    without_tags_and_links,
)
from cit_curate.records import Bool, Int64
from cit_curate.sources.pairs import digests
from cit_curate.sources.yfcc import TEXT_KEYS, UInt8

_TAB, _COMMA, _PLUS, _SPACE, _PERCENT, _LESS = b"\t,+ %<"
_NO_DIGIT = 255


def _hex_values(unit: int) -> UInt8:
    """What each ASCII letter is worth as a hexadecimal digit, times `unit`: uint8 [256]."""
    values = np.full(256, _NO_DIGIT, np.uint8)
    for value, digit in enumerate("0123456789abcdef"):
        values[[ord(digit), ord(digit.upper())]] = value * unit
    return values


def _pairs_of_spaces(first: int, second: int) -> Bool:
    """Which bytes the bytes `first` and `second` of a white-space letter are: bool [256, 256]."""
    pairs = np.zeros((256, 256), np.bool_)
    for space in _SPACES:
        pairs[space[first], space[second] if len(space) > 1 else slice(None)] = True
    return pairs


_HEX_LOW = _hex_values(1)
_HEX_HIGH = _hex_values(16)
# `+` is a space, whether it is written `+` or `%2B`.
_SPACED = np.where(np.arange(256) == _PLUS, _SPACE, np.arange(256)).astype(np.uint8)
# The last white-space letter of Unicode is U+3000.
_SPACES = [chr(code).encode() for code in range(0x3001) if chr(code).isspace()]
_MAY_START_SPACE = _pairs_of_spaces(0, 1)
_MAY_END_SPACE = _pairs_of_spaces(-1, -2)


def texts_of(
    regions: pa.BinaryArray, tabs: Int64 | None = None, *, reference_empty_tags: bool = False
) -> list[pa.ListArray]:
    """Clean the texts of images, and leave out those that are blank.

    Args:
        regions: Per image the columns title, description, user tags and machine tags of its line,
            as they stand there: URL-encoded, with a tab after each.
        tabs: int64 [images, 4]: where these tabs are in the bytes of all regions, one after the
            other; None = they are looked for.
        reference_empty_tags: Keep tag texts of commas only, as the reference does.

    Returns:
        The columns of `rows.TEXT_FIELDS`, [images].
    """
    raw = _bytes_of(regions)
    if tabs is None:
        tabs = np.flatnonzero(raw == _TAB).reshape(len(regions), 4)
    raw[tabs[:, 2]] = _COMMA
    ends = tabs[:, (0, 1, 3)].ravel()
    by_hand = {
        place: _cleaned_from_raw(raw, ends, place)
        for place in _need_raw_cleaning(raw, ends).tolist()
    }
    data, offsets = _unquoted(raw, ends)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    values = pa.Array.from_buffers(pa.binary(), len(ends), buffers)
    looked_at = _need_a_look(data, offsets)
    if not _are_utf8(data, offsets):
        looked_at[_not_utf8(values)] = True
    looked_at[list(by_hand)] = False
    # A third of the images have no tags: a comma between nothing and nothing.
    untagged = (tabs[:, 3] - tabs[:, 1] == 2) & (not reference_empty_tags)
    looked_at[2::3] &= ~untagged
    decoded = values.filter(arrow_of(looked_at)).to_pylist()
    for place, text in zip(np.flatnonzero(looked_at).tolist(), decoded, strict=True):
        by_hand[place] = _cleaned(text)
    keep = offsets[1:] > offsets[:-1]
    keep[2::3] &= ~untagged
    for place, (text, _) in by_hand.items():
        keep[place] = bool(text) and (
            text[0] != "," or not _is_empty_tag(text, place, reference_empty_tags)
        )
    return _collected(values, by_hand, keep)


def _collected(
    values: pa.Array, by_hand: dict[int, tuple[str, bool]], keep: Bool
) -> list[pa.ListArray]:
    """The texts to keep: as they were decoded, or as they were cleaned by hand."""
    num_texts, places = len(keep), list(by_hand)
    fixed, sources = np.zeros(num_texts, np.bool_), np.arange(num_texts)
    fixed[places] = [was_fixed for _, was_fixed in by_hand.values()]
    sources[places] = num_texts + np.arange(len(places))
    cleaned = strings_of([text for text, _ in by_hand.values()]).view(pa.binary())
    where = np.flatnonzero(keep)
    values = pa.concat_arrays([values, cleaned]).take(arrow_of(sources[where]))
    hashes = b"".join(digests(values.to_pylist()))
    columns = [
        strings_of(TEXT_KEYS).take(arrow_of(where % len(TEXT_KEYS))),
        values.view(pa.string()),  # UTF-8: what was not has been cleaned by hand
        arrow_of(np.frombuffer(hashes, "<u8")),
        arrow_of(fixed[where]),
    ]
    counts = keep.reshape(-1, len(TEXT_KEYS)).sum(axis=1, dtype=np.int64)
    bounds = arrow_of(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return [pa.ListArray.from_arrays(bounds, column) for column in columns]


def _bytes_of(regions: pa.BinaryArray) -> UInt8:
    """The bytes of all the regions, each `+` a space, one after the other, to write into."""
    offsets = np.frombuffer(regions.buffers()[1], np.int32)
    first, end = offsets[regions.offset], offsets[regions.offset + len(regions)]
    content = np.frombuffer(regions.buffers()[2] or b"", np.uint8)[first:end]
    spaced: UInt8 = content - (content == _PLUS) * np.uint8(_PLUS - _SPACE)
    return spaced


def _need_a_look(data: UInt8, offsets: Int64) -> Bool:
    """Which texts cleaning may still change, once they are decoded: bool [texts]."""
    looked_at = np.zeros(len(offsets) - 1, np.bool_)
    suspects = data == _LESS
    for word in (b"http", b"www"):
        found = data[: max(len(data) - len(word) + 1, 0)] == word[0]
        for place in range(1, len(word)):
            found &= data[place : place + len(found)] == word[place]
        suspects[: len(found)] |= found
    looked_at[np.searchsorted(offsets, np.flatnonzero(suspects), side="right") - 1] = True
    lengths = np.diff(offsets)
    filled = np.flatnonzero(lengths)
    starts, lasts = offsets[filled], offsets[filled + 1] - 1
    # Where a text is one byte long, the byte beside it is another's, and does not matter.
    first, second = data[starts], data.take(starts + 1, mode="clip")
    last, second_last = data[lasts], data.take(lasts - 1, mode="clip")
    looked_at[filled] |= _MAY_START_SPACE[first, second] | (first == _COMMA)
    looked_at[filled] |= _MAY_END_SPACE[last, second_last]
    looked_at |= lengths > MAX_CAPTION_BYTES
    return looked_at


def _are_utf8(data: UInt8, offsets: Int64) -> bool:
    """Whether the texts are UTF-8: all their bytes together are, and none starts in a letter."""
    bounds = np.array([0, len(data)], np.int32)
    whole = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(bounds), pa.py_buffer(data)])
    try:
        whole.validate(full=True)
    except pa.ArrowInvalid:
        return False
    firsts = data[offsets[:-1][np.diff(offsets) > 0]]
    return not ((firsts & 0b11000000) == 0b10000000).any()


def _not_utf8(values: pa.Array, first: int = 0) -> list[int]:
    """Places of the values that are not UTF-8; few are, so they are closed in on by halves."""
    try:
        values.cast(pa.string())
    except pa.ArrowInvalid:
        if len(values) == 1:
            return [first]
        half = len(values) // 2
        later = _not_utf8(values.slice(half), first + half)
        return _not_utf8(values.slice(0, half), first) + later
    return []


def _cleaned(decoded: bytes) -> tuple[str, bool]:
    """A text from its decoded bytes, and whether it was cut."""
    text = without_tags_and_links(decoded.decode("utf-8", "replace"))
    return cut_at_bytes(text.strip())


def _is_empty_tag(text: str, place: int, reference_empty_tags: bool) -> bool:
    key = TEXT_KEYS[place % len(TEXT_KEYS)]
    return key == "tag" and not reference_empty_tags and is_blank(text, key)


def _need_raw_cleaning(raw: UInt8, ends: Int64) -> Int64:
    """Texts, int64, that hold raw bytes above ASCII, or that are cut before they are cleaned."""
    high = np.searchsorted(ends, np.flatnonzero(raw >= 128))
    long = np.flatnonzero(np.diff(ends, prepend=-1) > MAX_RAW_CHARS)
    return np.union1d(high, long)


def _cleaned_from_raw(raw: UInt8, ends: Int64, place: int) -> tuple[str, bool]:
    """A text by the plain functions, and whether it was mended or cut."""
    start = int(ends[place - 1]) + 1 if place else 0
    cell = raw[start : int(ends[place])].tobytes().decode("utf-8", "surrogateescape")
    text, was_bad = replace_bad_text(cell)
    text, was_cut = cut_at_bytes(cleaner("yfcc")(text))
    return text, was_bad or was_cut


def _unquoted(raw: UInt8, ends: Int64) -> tuple[UInt8, Int64]:
    """Texts with each `%XX` as the byte it stands for, without the tabs that separated them.

    Returns:
        The bytes, and int64 [texts + 1]: where each text starts, and the last one ends.
    """
    starts_code = raw[:-2] == _PERCENT
    percent = np.flatnonzero(starts_code)
    high, low = _HEX_HIGH.take(raw.take(percent + 1)), _HEX_LOW.take(raw.take(percent + 2))
    decoded = high + low
    is_code = (high < _NO_DIGIT) & (low < _NO_DIGIT)
    if not is_code.all():
        starts_code[percent[~is_code]] = False
        percent, decoded = percent[is_code], decoded[is_code]
    raw[percent] = _SPACED.take(decoded)
    keep = np.ones(len(raw), np.bool_)
    keep[ends] = False
    keep[1:-1] &= ~starts_code
    keep[2:] &= ~starts_code
    moved = ends - 2 * np.searchsorted(percent, ends) - np.arange(len(ends))
    # `raw[keep]` takes three times as long.
    return np.compress(keep, raw), np.concatenate([[0], moved])
