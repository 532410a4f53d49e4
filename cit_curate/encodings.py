"""Encodings of text files: told by a byte order mark, given by name, or guessed for a message."""

import codecs
from pathlib import Path

import charset_normalizer

from cit_curate.errors import ConfigError

# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# Where the NUL bytes of four lie in Latin letters.
_UNMARKED = {"0x0x": "utf-16-be", "x0x0": "utf-16-le", "000x": "utf-32-be", "x000": "utf-32-le"}
# Bytes to look at. Four in ten NULs on one side are no text in an encoding of single bytes.
HEAD_BYTES = 1 << 16
_NUL_SHARE = 0.4
# Encodings that people's tables have; a guess among all of Python's is seldom better.
_LIKELY = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("cp932", "gb18030", "big5", "euc_kr", "euc_jp", "koi8_r"),
)
_MAX_GUESSED_BYTES = 1 << 16

LONE_SURROGATES = "cit-lone-surrogates"
"""The error handler that turns each undecodable byte into a lone surrogate, in any encoding."""


def _lone_surrogates(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + (byte | 0x80)) for byte in bad), error.end


codecs.register_error(LONE_SURROGATES, _lone_surrogates)


def checked_encoding(name: str) -> str:
    """The name itself, if it is a text encoding of Python.

    Raises:
        ConfigError: It is not.
    """
    try:
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"--encoding {name}: Python has no text encoding of that name; examples are utf-8, "
            "utf-16, cp1252, gb18030, shift_jis"
        ) from error
    return name


def encoding_of(head: bytes, where: object, *, has_option: bool = True) -> str:
    """The encoding of a text file without `--encoding`: that of its mark, else UTF-8.

    Args:
        head: The first `HEAD_BYTES` of the file.
        where: The file, for the message.
        has_option: Whether `--encoding` may be given for it.

    Raises:
        ConfigError: The file looks like UTF-16 or UTF-32 without a mark.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if wide := _unmarked(head):
        option = f"give --encoding {wide}, or " if has_option else ""
        raise ConfigError(
            f"{where} looks like {wide[:6].upper()} without a byte order mark: NUL bytes lie "
            f"between its letters; {option}save it as UTF-8"
        )
    return "utf-8"


def _unmarked(head: bytes) -> str:
    """UTF-16 or UTF-32, told by where the NUL bytes lie; "" for neither."""
    if b"\0" not in head:
        return ""
    shares = [head[start::4].count(0) / max(len(head[start::4]), 1) for start in range(4)]
    nuls = "".join("0" if share > _NUL_SHARE else "x" for share in shares)
    return _UNMARKED.get(nuls, "")


def likely_encoding(text: bytes) -> str:
    """The encoding that bytes which are not UTF-8 probably have; cp1252 where nothing else is."""
    guesses = list(
        charset_normalizer.from_bytes(text[:_MAX_GUESSED_BYTES], cp_isolation=list(_LIKELY))
    )
    if not guesses:
        return "cp1252"
    best = [guess.encoding for guess in guesses if guess.chaos == guesses[0].chaos]
    return "cp1252" if "cp1252" in best else best[0]


def read_text(path: Path) -> str:
    """The text of a small file: UTF-8, or UTF-16 or UTF-32 by its mark; without the mark.

    Raises:
        ConfigError: It is in another encoding.
    """
    content = path.read_bytes()
    encoding = encoding_of(content[:HEAD_BYTES], path, has_option=False)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not {encoding[:6].upper().rstrip('-')} text: {error}; it looks like "
            f"{likely_encoding(content)}; save it as UTF-8"
        ) from error
