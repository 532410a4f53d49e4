"""The three texts of a YFCC image, cleaned as `captions.clean_text` does it, a block at a time.

URL-decoding is done on the bytes of a whole block at once; only what a regular expression must see
is shown to one. The tests hold every result to the plain functions in `captions`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cit_curate.captions import (
    MAX_CAPTION_BYTES,
    MAX_RAW_CHARS,
    cleaner,
    cut_at_bytes,
    is_blank,
    replace_bad_text,
    without_tags_and_links,
)
from cit_curate.sources.yfcc import TEXT_KEYS, UInt8

_TAB, _COMMA, _PLUS, _SPACE, _PERCENT = b"\t,+ %"
_NO_DIGIT = 255
_HEX = np.full(256, _NO_DIGIT, np.uint8)
for _value, _letter in enumerate(b"0123456789abcdef"):
    _HEX[_letter] = _HEX[bytes([_letter]).upper()[0]] = _value
_MARKUP = re.compile("<|http|www")

TEXTS_TYPE = pa.list_(
    pa.struct(
        [
            pa.field("text_key", pa.int8()),
            pa.field("caption", pa.string()),
            pa.field("caption_hash", pa.uint64()),
            pa.field("text_fixed", pa.bool_()),
        ]
    )
)
"""The texts of an image; `text_key` counts in `TEXT_KEYS`."""


@dataclass(frozen=True)
class Texts:
    """What is left of the texts of some images.

    Attributes:
        counts: int64 [images], texts of each image.
        texts: `TEXTS_TYPE` [images].
    """

    counts: npt.NDArray[np.int64]
    texts: pa.ListArray


def texts_of(regions: Sequence[bytes], *, reference_empty_tags: bool = False) -> Texts:
    """Clean the texts of images, and leave out those that are blank.

    Args:
        regions: Per image the columns title, description, user tags and machine tags of its line,
            as they stand there: URL-encoded, with the three tabs between them.
        reference_empty_tags: Keep tag texts of commas only, as the reference does.
    """
    raw = np.frombuffer(b"\t".join([*regions, b""]), np.uint8).copy()
    tabs = np.flatnonzero(raw == _TAB).reshape(len(regions), 4)
    raw[tabs[:, 2]] = _COMMA
    ends = tabs[:, (0, 1, 3)].ravel()
    slow = _need_plain_cleaning(raw, ends)
    plain = [_cleaned_plainly(raw, ends, place) for place in slow.tolist()]
    data, ends = _unquoted(raw, ends)
    data[data == _PLUS] = _SPACE
    return _collected(data.tobytes(), ends.tolist(), dict(zip(slow.tolist(), plain, strict=True)),
                      reference_empty_tags=reference_empty_tags)  # fmt: skip


def _collected(
    data: bytes,
    ends: list[int],
    plain: dict[int, tuple[str, bool]],
    *,
    reference_empty_tags: bool,
) -> Texts:
    """The texts of decoded bytes, but for those in `plain`, which are cleaned already."""
    num_keys = len(TEXT_KEYS)
    places: list[int] = []
    captions: list[str] = []
    hashes: list[bytes] = []
    fixed: list[bool] = []
    start, has_markup = 0, _MARKUP.search
    for place, end in enumerate(ends):
        was_fixed = False
        if place in plain:
            text, was_fixed = plain[place]
        else:
            text = data[start:end].decode("utf-8", "replace")
            if has_markup(text):
                text = without_tags_and_links(text)
            text = text.strip()
            if len(text) * 4 > MAX_CAPTION_BYTES:
                text, was_fixed = cut_at_bytes(text)
        start = end + 1
        # A text that is stripped and not empty has something to read, unless it is all commas.
        if not text or (text[0] == "," and _is_empty_tag(text, place, reference_empty_tags)):
            continue
        places.append(place)
        captions.append(text)
        hashes.append(blake2b(text.encode(), digest_size=8).digest())
        fixed.append(was_fixed)
    where = np.array(places, np.int64)
    counts = np.bincount(where // num_keys, minlength=len(ends) // num_keys)
    texts = pa.StructArray.from_arrays(
        [
            pa.array((where % num_keys).astype(np.int8)),
            pa.array(captions, pa.string()),
            pa.array(np.frombuffer(b"".join(hashes), "<u8"), pa.uint64()),
            pa.array(fixed, pa.bool_()),
        ],
        fields=list(TEXTS_TYPE.value_type),
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return Texts(counts, pa.ListArray.from_arrays(offsets, texts).cast(TEXTS_TYPE))


def _is_empty_tag(text: str, place: int, reference_empty_tags: bool) -> bool:
    key = TEXT_KEYS[place % len(TEXT_KEYS)]
    return key == "tag" and not reference_empty_tags and is_blank(text, key)


def _need_plain_cleaning(raw: UInt8, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64: texts that hold raw bytes above ASCII, or that are cut before they are cleaned."""
    high = np.searchsorted(ends, np.flatnonzero(raw >= 128))
    long = np.flatnonzero(np.diff(ends, prepend=-1) > MAX_RAW_CHARS)
    return np.union1d(high, long)


def _cleaned_plainly(raw: UInt8, ends: npt.NDArray[np.int64], place: int) -> tuple[str, bool]:
    start = int(ends[place - 1]) + 1 if place else 0
    cell = raw[start : int(ends[place])].tobytes().decode("utf-8", "surrogateescape")
    text, was_bad = replace_bad_text(cell)
    text, was_cut = cut_at_bytes(cleaner("yfcc")(text))
    return text, was_bad or was_cut


def _unquoted(raw: UInt8, ends: npt.NDArray[np.int64]) -> tuple[UInt8, npt.NDArray[np.int64]]:
    """Bytes with each `%XX` as the byte it stands for, and where the same places are now."""
    percent = np.flatnonzero(raw == _PERCENT)
    percent = percent[percent < len(raw) - 2]
    high, low = _HEX[raw[percent + 1]], _HEX[raw[percent + 2]]
    is_code = (high != _NO_DIGIT) & (low != _NO_DIGIT)
    percent = percent[is_code]
    raw[percent] = high[is_code] * np.uint8(16) + low[is_code]
    keep = np.ones(len(raw), np.bool_)
    keep[percent + 1] = keep[percent + 2] = False
    return raw[keep], ends - 2 * np.searchsorted(percent, ends)
