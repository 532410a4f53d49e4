"""The three texts of a YFCC image, with the results of `captions.clean_text`, a block at a time.

The bytes of a block are URL-decoded at once, and most texts need no more than that. The others are
cleaned one by one. The tests compare every result with that of the plain functions in `captions`.
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
from cit_curate.sources.texts import digests
from cit_curate.sources.yfcc.format import TEXT_KEYS, UInt8

_TAB, _COMMA, _PLUS, _SPACE, _PERCENT, _LESS = b"\t,+ %<"
_NO_DIGIT = 255


def _hex_values(unit: int) -> UInt8:
    """The value of each ASCII letter as a hexadecimal digit, times `unit`: uint8 [256]."""
    values = np.full(256, _NO_DIGIT, np.uint8)
    for value, digit in enumerate("0123456789abcdef"):
        values[[ord(digit), ord(digit.upper())]] = value * unit
    return values


def _pairs_of_spaces(first: int, second: int) -> Bool:
    """Which values bytes `first` and `second` of a white-space letter have: bool [256, 256]."""
    pairs = np.zeros((256, 256), np.bool_)
    for space in _SPACES:
        pairs[space[first], space[second] if len(space) > 1 else slice(None)] = True
    return pairs


_HEX_LOW = _hex_values(1)
_HEX_HIGH = _hex_values(16)
# Both `+` and `%2B` stand for a space.
_SPACED = np.where(np.arange(256) == _PLUS, _SPACE, np.arange(256)).astype(np.uint8)
# The last white-space letter of Unicode is U+3000.
_SPACES = [chr(code).encode() for code in range(0x3001) if chr(code).isspace()]
_MAY_START_SPACE = _pairs_of_spaces(0, 1)
_MAY_END_SPACE = _pairs_of_spaces(-1, -2)


def texts_of(
    regions: pa.BinaryArray, tabs: Int64 | None = None, *, reference_empty_tags: bool = False
) -> list[pa.ListArray]:
    """Clean the texts of images, and leave out the blank ones.

    Args:
        regions: The columns title, description, user tags and machine tags of each image's line,
            URL-encoded as in the file, with a tab after each.
        tabs: int64 [images, 4], the offsets of these tabs in the joined bytes of all regions;
            None = they are searched for.
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
        index: _cleaned_from_raw(raw, ends, index)
        for index in _need_raw_cleaning(raw, ends).tolist()
    }
    data, offsets = _unquoted(raw, ends)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    values = pa.Array.from_buffers(pa.binary(), len(ends), buffers)
    to_clean = _may_need_cleaning(data, offsets)
    if not _are_utf8(data, offsets):
        to_clean[_not_utf8(values)] = True
    to_clean[list(by_hand)] = False
    # A third of the images have no tags: their tag text is only the comma between the columns.
    untagged = (tabs[:, 3] - tabs[:, 1] == 2) & (not reference_empty_tags)
    to_clean[2::3] &= ~untagged
    decoded = values.filter(arrow_of(to_clean)).to_pylist()
    for index, text in zip(np.flatnonzero(to_clean).tolist(), decoded, strict=True):
        by_hand[index] = _cleaned(text)
    keep = offsets[1:] > offsets[:-1]
    keep[2::3] &= ~untagged
    for index, (text, _) in by_hand.items():
        keep[index] = bool(text) and (
            text[0] != "," or not _is_empty_tag(text, index, reference_empty_tags)
        )
    return _collected(values, by_hand, keep)


def _collected(
    values: pa.Array, by_hand: dict[int, tuple[str, bool]], keep: Bool
) -> list[pa.ListArray]:
    """The texts to keep, either as decoded or as cleaned by hand."""
    num_texts, indices = len(keep), list(by_hand)
    fixed, sources = np.zeros(num_texts, np.bool_), np.arange(num_texts)
    fixed[indices] = [was_fixed for _, was_fixed in by_hand.values()]
    sources[indices] = num_texts + np.arange(len(indices))
    cleaned = strings_of([text for text, _ in by_hand.values()]).view(pa.binary())
    kept = np.flatnonzero(keep)
    values = pa.concat_arrays([values, cleaned]).take(arrow_of(sources[kept]))
    hashes = b"".join(digests(values.to_pylist()))
    columns = [
        strings_of(TEXT_KEYS).take(arrow_of(kept % len(TEXT_KEYS))),
        values.view(pa.string()),  # UTF-8: all other texts were cleaned by hand
        arrow_of(np.frombuffer(hashes, "<u8")),
        arrow_of(fixed[kept]),
    ]
    counts = keep.reshape(-1, len(TEXT_KEYS)).sum(axis=1, dtype=np.int64)
    bounds = arrow_of(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return [pa.ListArray.from_arrays(bounds, column) for column in columns]


def _bytes_of(regions: pa.BinaryArray) -> UInt8:
    """A writable copy of the joined bytes of all regions, with a space for each `+`."""
    offsets = np.frombuffer(regions.buffers()[1], np.int32)
    first, end = offsets[regions.offset], offsets[regions.offset + len(regions)]
    content = np.frombuffer(regions.buffers()[2] or b"", np.uint8)[first:end]
    spaced: UInt8 = content - (content == _PLUS) * np.uint8(_PLUS - _SPACE)
    return spaced


def _may_need_cleaning(data: UInt8, offsets: Int64) -> Bool:
    """Which decoded texts the cleaning may still change: bool [texts]."""
    to_clean = np.zeros(len(offsets) - 1, np.bool_)
    suspects = data == _LESS
    for word in (b"http", b"www"):
        starts_word = data[: max(len(data) - len(word) + 1, 0)] == word[0]
        for shift in range(1, len(word)):
            starts_word &= data[shift : shift + len(starts_word)] == word[shift]
        suspects[: len(starts_word)] |= starts_word
    to_clean[np.searchsorted(offsets, np.flatnonzero(suspects), side="right") - 1] = True
    lengths = np.diff(offsets)
    filled = np.flatnonzero(lengths)
    starts, lasts = offsets[filled], offsets[filled + 1] - 1
    # Beside a text of one byte lies a byte of another text, which does not matter.
    first, second = data[starts], data.take(starts + 1, mode="clip")
    last, second_last = data[lasts], data.take(lasts - 1, mode="clip")
    to_clean[filled] |= _MAY_START_SPACE[first, second] | (first == _COMMA)
    to_clean[filled] |= _MAY_END_SPACE[last, second_last]
    to_clean |= lengths > MAX_CAPTION_BYTES
    return to_clean


def _are_utf8(data: UInt8, offsets: Int64) -> bool:
    """Whether all texts are UTF-8: their joined bytes are, and no text starts inside a letter."""
    bounds = np.array([0, len(data)], np.int32)
    whole = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(bounds), pa.py_buffer(data)])
    try:
        whole.validate(full=True)
    except pa.ArrowInvalid:
        return False
    firsts = data[offsets[:-1][np.diff(offsets) > 0]]
    return not ((firsts & 0b11000000) == 0b10000000).any()


def _not_utf8(values: pa.Array, first: int = 0) -> list[int]:
    """The indices of the values that are not UTF-8, by bisection because they are few."""
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
    """The clean text of decoded bytes, and whether it was cut."""
    text = without_tags_and_links(decoded.decode("utf-8", "replace"))
    return cut_at_bytes(text.strip())


def _is_empty_tag(text: str, index: int, reference_empty_tags: bool) -> bool:
    key = TEXT_KEYS[index % len(TEXT_KEYS)]
    return key == "tag" and not reference_empty_tags and is_blank(text, key)


def _need_raw_cleaning(raw: UInt8, ends: Int64) -> Int64:
    """int64, the indices of texts with raw bytes above ASCII, or too long to be cleaned uncut."""
    high = np.searchsorted(ends, np.flatnonzero(raw >= 128))
    long = np.flatnonzero(np.diff(ends, prepend=-1) > MAX_RAW_CHARS)
    return np.union1d(high, long)


def _cleaned_from_raw(raw: UInt8, ends: Int64, index: int) -> tuple[str, bool]:
    """A text cleaned by the plain functions, and whether it was mended or cut."""
    start = int(ends[index - 1]) + 1 if index else 0
    cell = raw[start : int(ends[index])].tobytes().decode("utf-8", "surrogateescape")
    text, was_bad = replace_bad_text(cell)
    text, was_cut = cut_at_bytes(cleaner("yfcc")(text))
    return text, was_bad or was_cut


def _unquoted(raw: UInt8, ends: Int64) -> tuple[UInt8, Int64]:
    """Texts with each `%XX` decoded to its byte, without the tabs between them.

    Returns:
        The bytes, and int64 [texts + 1], the start of each text and then the end of the last one.
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
