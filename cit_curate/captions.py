"""Captions: repair, cleaning and tag augmentation, all pure functions of text.

Captions keep their spelling (no Unicode normalisation): two encodings of the same accented letter
stay two captions, and a pair key never depends on its caption.
"""

import re
from collections.abc import Callable
from urllib.parse import unquote

import numpy as np

from cit_curate.config import Cleaning

MAX_CAPTION_BYTES = 16 * 1024
# Raw text is cut to this length before it is cleaned: URL encoding makes a letter up to 12 bytes.
MAX_RAW_CHARS = 12 * MAX_CAPTION_BYTES

TAG_DELIMITERS = (" ", ",", ";", "/", "\n")

# Texts up to this length are searched for tags at once; quadratic time is harmless here.
_MAX_SHORT_CHARS = 1024

# Soft hyphens, fillers, joiners, marks of direction, variation selectors, tags, blank Braille.
_UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"
)
_SEEN = re.compile(rf"[^\s\x00-\x1f\x7f-\x9f{_UNSEEN}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG_PART_OF_LINE = re.compile(r"^.*>", re.MULTILINE)
_TAG = re.compile(r"<a[^>\n]*>|</a>|</?b>|</?i>")
_LINK = re.compile(r"http\S+|www\S+")


def clean_text(raw: str) -> str:
    """A title or description of YFCC, cleaned as in the reference (`docs/method.md`, YFCC).

    URL-decoded, `+` to space, then without `<a …>`, `</a>`, `<b>`, `</b>`, `<i>`, `</i>` and
    without `http…` and `www…` up to white space. Not stripped.
    """
    return without_tags_and_links(unquote(raw).replace("+", " "))


def without_tags_and_links(text: str) -> str:
    """The second half of `clean_text`, for a text that is URL-decoded already."""
    if "<" in text and ">" in text:
        if len(text) <= _MAX_SHORT_CHARS:
            text = _TAG.sub("", text)
        else:
            # Only before the last ">" of each line, so that "<a<a<a…" stays linear.
            text = _TAG_PART_OF_LINE.sub(lambda line: _TAG.sub("", line[0]), text)
    if "http" in text or "www" in text:
        text = _LINK.sub("", text)
    return text


def clean_tags(user: str, machine: str) -> str:
    """The tag text of YFCC: user tags, a comma, machine tags, cleaned as `clean_text` does."""
    return clean_text(f"{user},{machine}")


def cleaner(name: Cleaning) -> Callable[[str], str]:
    """The cleaning of `--clean NAME`: `none` keeps the text; `yfcc` is `clean_text`, stripped.

    Raises:
        ValueError: There is no such cleaning.
    """
    if name == "none":
        return lambda text: text
    if name == "yfcc":
        return lambda text: clean_text(text[:MAX_RAW_CHARS]).strip()
    raise ValueError(f"cleaning {name!r} is unknown; there are none and yfcc")


def augment_tags(caption: str, rng: np.random.Generator) -> str:
    """Tags in random order, joined by one random delimiter (`docs/method.md`, outer step, rule 3).

    Args:
        caption: Tags separated by commas.
        rng: The generator of the order and the delimiter; keyed by the caller, so that the scored
            text can be made again.
    """
    tags = [tag.strip() for tag in caption.split(",")]
    order = rng.permutation(len(tags)).tolist()
    return TAG_DELIMITERS[rng.integers(len(TAG_DELIMITERS))].join([tags[index] for index in order])


def is_blank(caption: str, text_key: str) -> bool:
    """Whether a caption has only white space, or, for the text key `tag`, only commas besides."""
    text = caption.replace(",", "") if text_key == "tag" else caption
    return not text or text.isspace()


def is_unseen(text: str) -> bool:
    """Whether a text has only white space, control and zero-width characters, and blank letters."""
    return not _SEEN.search(text)


def replace_bad_text(text: str) -> tuple[str, bool]:
    """The text with U+FFFD for each lone surrogate (a byte that was not UTF-8); whether any was."""
    if text.isascii():
        return text, False
    fixed = _SURROGATE.sub("\ufffd", text)
    return fixed, fixed != text


def cut_at_bytes(text: str, max_bytes: int = MAX_CAPTION_BYTES) -> tuple[str, bool]:
    """The longest prefix of the text within `max_bytes` of UTF-8, and whether it was cut."""
    if len(text) * 4 <= max_bytes:
        return text, False
    encoded = text.encode("utf-8")
    if len(encoded) <= max_bytes:
        return text, False
    return encoded[:max_bytes].decode("utf-8", errors="ignore"), True


def shown_text(text: str) -> str:
    """A text for messages: in quotes, in ASCII, and cut after 80 characters."""
    return ascii(text if len(text) <= 80 else text[:80] + "…")
