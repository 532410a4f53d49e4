"""How a pair says where its image lies; pure text, nothing is opened.

| image_uri | the image is |
|---|---|
| `a/b.jpg` | a file |
| `zip://a/b.zip#MEMBER` | the member of exactly that name |
| `tar://a/b.tar?offset=N&size=M#MEMBER` | M bytes of the tar from byte N; the name is optional |
| `arrow://a/b.arrow?column=C&row=N` | cell of an Arrow IPC stream; rows count from 0 |
| `parquet://a/b.parquet?column=C&row=N` | cell of a Parquet file |

Paths start at the source's image root and stand there as they are, nothing percent-encoded but C.
"""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

ArchiveScheme = Literal["zip", "tar", "arrow", "parquet"]

_PLACES: dict[ArchiveScheme, re.Pattern[str]] = {
    "zip": re.compile(r"(?P<path>.*?[^/]\.(?i:zip))(?P<place>#(?P<member>.+))", re.DOTALL),
    "tar": re.compile(
        r"(?P<path>.+?)(?P<place>"
        r"\?offset=(?P<offset>[0-9]{1,18})&size=(?P<size>[0-9]{1,18})(?:#(?P<member>.+))?)",
        re.DOTALL,
    ),
    "arrow": re.compile(
        r"(?P<path>.+)(?P<place>\?column=(?P<column>[^?&#]+)&row=(?P<row>[0-9]{1,18}))", re.DOTALL
    ),
}
_PLACES["parquet"] = _PLACES["arrow"]


@dataclass(frozen=True)
class ImageUri:
    """A parsed uri of an image inside another file.

    Attributes:
        scheme: What the other file is.
        path: That file, below the image root.
        place: The rest of the uri, from its `#` or `?` on.
        member: Name inside a zip or tar; "" where a tar's is not told.
        offset: First byte in a tar.
        size: Bytes in a tar.
        column: Column of a table.
        row: Row of a table, from 0.
    """

    scheme: ArchiveScheme
    path: str
    place: str
    member: str = ""
    offset: int = 0
    size: int = 0
    column: str = ""
    row: int = 0


def parse_image_uri(image_uri: str) -> ImageUri | None:
    """The parts of a uri with one of our schemes; None for any other text.

    Raises:
        ValueError: The scheme is ours, but the rest is not spelled as it should be.
    """
    scheme, separator, rest = image_uri.partition("://")
    if not separator or scheme not in _PLACES:
        return None
    found = _PLACES[scheme].fullmatch(rest)
    if found is None:
        shown = image_uri if len(image_uri) <= 80 else image_uri[:80] + "…"
        raise ValueError(f"{shown!a} is not spelled as {_SPELLING[scheme]}")
    parts = found.groupdict()
    return ImageUri(
        scheme=scheme,
        path=parts["path"],
        place=parts["place"],
        member=parts.get("member") or "",
        offset=int(parts.get("offset") or 0),
        size=int(parts.get("size") or 0),
        column=unquote(parts.get("column") or ""),
        row=int(parts.get("row") or 0),
    )


def tar_uri(path: str, offset: int, size: int, member: str = "") -> str:
    """The uri of a tar's member; with a name, the reader compares it."""
    return f"tar://{path}?offset={offset}&size={size}{f'#{member}' if member else ''}"


def cell_uri(scheme: Literal["arrow", "parquet"], path: str, column: str, row: int) -> str:
    """The uri of an image in a cell of a table."""
    return f"{scheme}://{path}?column={quote(column, safe='')}&row={row}"


_SPELLING: dict[ArchiveScheme, str] = {
    "zip": "zip://PATH.zip#MEMBER",
    "tar": "tar://PATH.tar?offset=N&size=M#MEMBER",
    "arrow": "arrow://PATH.arrow?column=C&row=N",
    "parquet": "parquet://PATH.parquet?column=C&row=N",
}
