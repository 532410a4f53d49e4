"""The syntax of image URIs; pure text, no file is opened.

| image_uri | the image is |
|---|---|
| `a/b.jpg` | a file |
| `zip://a/b.zip#MEMBER` | the member of exactly that name |
| `tar://a/b.tar?offset=N&size=M#MEMBER` | M bytes of the tar from byte N; the name is optional |
| `arrow://a/b.arrow?column=C&row=N` | a cell of an Arrow file or stream; rows count from 0 |
| `parquet://a/b.parquet?column=C&row=N` | a cell of a Parquet file |

Paths are relative to the source's image root. Only C is percent-encoded.
"""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

ArchiveScheme = Literal["zip", "tar", "arrow", "parquet"]

_SYNTAX: dict[ArchiveScheme, re.Pattern[str]] = {
    "zip": re.compile(r"(?P<path>.*?[^/]\.(?i:zip))(?P<location>#(?P<member>.+))", re.DOTALL),
    "tar": re.compile(
        r"(?P<path>.+?)(?P<location>"
        r"\?offset=(?P<offset>[0-9]{1,18})&size=(?P<size>[0-9]{1,18})(?:#(?P<member>.+))?)",
        re.DOTALL,
    ),
    "arrow": re.compile(
        r"(?P<path>.+)(?P<location>\?column=(?P<column>[^?&#]+)&row=(?P<row>[0-9]{1,18}))",
        re.DOTALL,
    ),
}
_SYNTAX["parquet"] = _SYNTAX["arrow"]


@dataclass(frozen=True)
class ImageUri:
    """The parsed URI of an image inside another file.

    Attributes:
        scheme: The format of that file.
        path: The path of that file below the image root.
        location: The rest of the URI, from its `#` or `?` on.
        member: The name inside a zip or tar; "" in the URI of a tar without a name.
        offset: The offset in a tar, in bytes.
        size: The size in a tar, in bytes.
        column: The column of a table.
        row: The row of a table, from 0.
    """

    scheme: ArchiveScheme
    path: str
    location: str
    member: str = ""
    offset: int = 0
    size: int = 0
    column: str = ""
    row: int = 0


def parse_image_uri(image_uri: str) -> ImageUri | None:
    """The parts of a URI with one of the schemes above; None for any other text.

    Raises:
        ValueError: The scheme is one of them, but the rest is malformed.
    """
    scheme, separator, rest = image_uri.partition("://")
    if not separator or scheme not in _SYNTAX:
        return None
    match = _SYNTAX[scheme].fullmatch(rest)
    if match is None:
        shown = image_uri if len(image_uri) <= 80 else image_uri[:80] + "…"
        raise ValueError(f"{shown!a} is not spelled as {_SPELLING[scheme]}")
    parts = match.groupdict()
    return ImageUri(
        scheme=scheme,
        path=parts["path"],
        location=parts["location"],
        member=parts.get("member") or "",
        offset=int(parts.get("offset") or 0),
        size=int(parts.get("size") or 0),
        column=unquote(parts.get("column") or ""),
        row=int(parts.get("row") or 0),
    )


def tar_uri(path: str, offset: int, size: int, member: str = "") -> str:
    """The URI of a tar's member; the reader checks its name if there is one."""
    return f"tar://{path}?offset={offset}&size={size}{f'#{member}' if member else ''}"


def cell_uri(scheme: Literal["arrow", "parquet"], path: str, column: str, row: int) -> str:
    """The URI of an image in a cell of a table."""
    return f"{scheme}://{path}?column={quote(column, safe='')}&row={row}"


_SPELLING: dict[ArchiveScheme, str] = {
    "zip": "zip://PATH.zip#MEMBER",
    "tar": "tar://PATH.tar?offset=N&size=M#MEMBER",
    "arrow": "arrow://PATH.arrow?column=C&row=N",
    "parquet": "parquet://PATH.parquet?column=C&row=N",
}
