"""What a file of class names may not be: binary files, and text in a format that is not read."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cit_curate.encodings import read_text
from cit_curate.errors import ConfigError
from cit_curate.metadata.class_list import shortened
from cit_curate.metadata.lines import is_comment

WAY_OUT = "write one name a line, or give JSON or CSV"

# The first bytes of files -> what they are, and what to do.
_BINARY = (
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"PK\x03\x04", "a zip archive, as Excel's .xlsx is; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an Office document, as Excel's .xls is; save the sheet as CSV"),
    (b"PAR1", "a Parquet file; save the names as CSV"),
    (b"ARROW1", "an Arrow file; save the names as CSV"),
    (b"\x93NUMPY", "a NumPy file; save the names one a line"),
    (b"SQLite format 3\0", "an SQLite database; save the names as CSV"),
    (b"\x89HDF", "an HDF5 file; save the names one a line"),
    (b"%PDF", "a PDF; save the names one a line"),
    (b"{\\rtf", "a rich text document; save it as plain text"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    *((bytes((0x80, version)), "a pickle; save the names one a line") for version in range(2, 6)),
)
_YAML_SUFFIXES = (".yaml", ".yml")
_OPENING, _CLOSING = "[({", "])}"
_KEY_ALONE = re.compile(r"[\w\"'][^:|]*:$")
_KEY_AND_VALUE = re.compile(r"[\w\"'-]+:\s")
_BULLET = re.compile(r"(\s*)[-*+•‣·–]\s+\S")
_VALUE_OPENS = re.compile(r"[\w.\"' ]+(?::[^=:]*)?[=:]\s*[\[({]")
_SECTION = re.compile(r"\[[\w .\"-]+\]$")
_LISTED = re.compile(r"""["']\s*,\s*["']""")
_MARKUP = re.compile(r"<[?!a-zA-Z]")
_TABLE_RULE = re.compile(r"[\s:|-]+")


def text_of(path: Path) -> str:
    """The text of a file of class names.

    Raises:
        ConfigError: It is not text, or in an encoding that nothing tells; the message says what it
            looks like.
    """
    with path.open("rb") as stream:
        head = stream.read(16)
    for first, what in _BINARY:
        if head.startswith(first):
            raise ConfigError(f"class names: {path} is not text but {what}")
    text = read_text(path)
    if "\0" in text:
        raise ConfigError(f"class names: {path} is not text: it holds NUL bytes; {WAY_OUT}")
    return text


def refused(path: Path, what: str, line: str) -> ConfigError:
    """The error of a file that is not read, with its first line."""
    return ConfigError(
        f"class names: {path} {what}, which is not read; its first line is "
        f"{shortened(line.strip())!r}; {WAY_OUT}"
    )


def refuse_other_formats(lines: Sequence[str], path: Path, *, is_table: bool = False) -> None:
    """Refuse lines that are something else than one name each.

    Args:
        lines: The lines of the file, with their indentation.
        path: The file, for the message.
        is_table: Whether cells in quotes, with commas between them, are expected.

    Raises:
        ConfigError: They look like YAML, a list or a dictionary of Python, markup, or settings.
    """
    lines = [line.rstrip() for line in lines if line.strip() and not is_comment(line)]
    if lines and (what := _format_of(lines, path.suffix.lower(), is_table)):
        raise refused(path, f"looks like {what}", lines[0])


def _format_of(lines: Sequence[str], suffix: str, is_table: bool) -> str:
    first, last = lines[0].strip(), lines[-1].strip()
    if suffix in _YAML_SUFFIXES or first == "---" or first.startswith("%YAML"):
        return "YAML"
    if any(
        _KEY_ALONE.match(line.strip()) and (after[0].isspace() or after.startswith("- "))
        for line, after in pairwise(lines)
    ):
        return "YAML"
    if first.startswith("- ") and _KEY_AND_VALUE.match(first[2:]):
        return "YAML"
    bullets = [_BULLET.match(line) for line in lines]
    if all(bullets) and len({bullet[1] for bullet in bullets if bullet}) > 1:
        return "a list within a list"
    if _MARKUP.match(first) and (last.endswith(">") or "</" in first):
        return "markup"
    if any(_TABLE_RULE.fullmatch(line) and "--" in line and "|" in line for line in lines[:3]):
        return "a table of Markdown"
    if _SECTION.match(first) and any("=" in line for line in lines):
        return "settings (TOML or INI)"
    is_listed = any(mark in first for mark in "\"',")
    closes = first.rstrip(",;")[-1] in _CLOSING if first.rstrip(",;") else False
    # `[unknown]` above other lines is a name.
    opens = first[0] in _OPENING and (is_listed or len(lines) == 1 or not closes)
    if opens or first[-1] in _OPENING or _VALUE_OPENS.match(first):
        return "a list or a dictionary of Python, YAML or damaged JSON"
    if not is_table and first[0] in "\"'" and _LISTED.search(first):
        return "a list of Python without its brackets"
    return ""
