"""Text files: decompressed by suffix or content, decoded, and cut into counted lines."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from cit_curate.encodings import HEAD_BYTES, LONE_SURROGATES, checked_encoding, encoding_of
from cit_curate.errors import DamagedError

MAX_LINE_CHARS = 16 * 1024 * 1024
CHUNK_BYTES = 1 << 20


def _open_zstd(path: Path) -> pa.NativeFile:
    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


_COMPRESSIONS: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.GzipFile),
    ".bz2": (b"BZh", bz2.BZ2File),
    ".xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
    ".zst": (b"\x28\xb5\x2f\xfd", _open_zstd),
}
COMPRESSED_TEXT_SUFFIXES = tuple(_COMPRESSIONS)
# A file that is shorter than these was cut.
_MAGIC_BYTES = 8


def compression_of(path: Path) -> str:
    """The suffix of the compression that the first bytes of a file tell; "" for none.

    The first bytes count, not the name: `t.csv` may be gzipped, and `t.csv.gz` unpacked.
    """
    with path.open("rb") as file:
        head = file.read(_MAGIC_BYTES)
    for suffix, (magic, _) in _COMPRESSIONS.items():
        if head.startswith(magic):
            return suffix
    suffix = path.suffix.lower()
    return suffix if suffix in _COMPRESSIONS and len(head) < _MAGIC_BYTES else ""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file, decompressed if its first bytes say so; for reading from front to back.

    Raises:
        DamagedError: The compressed file is cut or damaged.
    """
    compression = compression_of(path)
    if not compression:
        with path.open("rb") as file:
            yield file
        return
    try:
        with _COMPRESSIONS[compression][1](path) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is not None:  # the disk's error, not that of what is written on it
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DamagedError:
    return DamagedError(f"{path} is damaged, cut or still being written: {error}")


@dataclass
class TextLines:
    """The lines of a text file, from the first one.

    A line ends with LF or CR LF; in a file that has no LF in its beginning, with CR. A CR inside
    another line is a blank.

    Attributes:
        path: The file.
        encoding: The encoding, as Python calls it.
        newline: The end of the first line.
        num_lines: The lines so far.
        other_ends: The ends of lines, by their number, that are not `newline`.
    """

    path: Path
    encoding: str
    newline: str = "\n"
    num_lines: int = field(default=0, init=False)
    other_ends: dict[int, str] = field(default_factory=dict, init=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for an encoding that is not the usual one."""
        if self.encoding.startswith("utf-8"):
            return ()
        return (f"read as {self.encoding}",)

    def with_ends(self, lines: Sequence[str], first: int) -> list[str]:
        """Lines with their ends, of which the first has the number `first`."""
        return [
            line + self.other_ends.get(number, self.newline)
            for number, line in enumerate(lines, first)
        ]

    def forget(self, first: int) -> None:
        """Forget the ends of the lines before one."""
        if self.other_ends:
            ends = self.other_ends.items()
            self.other_ends = {number: end for number, end in ends if number >= first}

    def blocks(self) -> Iterator[list[str]]:
        """Consecutive lines without their ends; one of more than `MAX_LINE_CHARS` is cut there.

        Undecodable bytes are lone surrogates.

        Raises:
            DamagedError: The file is compressed, and cut or damaged.
        """
        self.num_lines = 0
        self.other_ends.clear()
        pending = ""
        for text in self._decoded():
            whole, end, rest = text.rpartition("\r" if self.newline == "\r" else "\n")
            if end:
                lines = self._split(pending + whole)
                lines[0] = lines[0][:MAX_LINE_CHARS]
                self.num_lines += len(lines)
                yield lines
                pending = rest
            elif len(pending) < MAX_LINE_CHARS:
                pending += rest
        if pending:
            self.num_lines += 1
            yield self._split(pending[:MAX_LINE_CHARS])

    def _split(self, text: str) -> list[str]:
        if self.newline == "\r":
            return text.split("\r")
        lines = text.split("\n")
        if "\r" in text or self.newline == "\r\n":
            for number, line in enumerate(lines, self.num_lines + 1):
                end = "\r\n" if line.endswith("\r") else "\n"
                if end != self.newline:
                    self.other_ends[number] = end
            lines = [line.rstrip("\r").replace("\r", " ") for line in lines]
        return lines

    def _decoded(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder(self.encoding)(LONE_SURROGATES)
        is_first = True
        with opened(self.path) as file:
            while chunk := file.read(CHUNK_BYTES):
                text = decoder.decode(chunk)
                if text and is_first:
                    text, is_first = text.removeprefix("\ufeff"), False
                if text:
                    yield text
            if text := decoder.decode(b"", final=True):
                yield text


def text_lines(path: Path, encoding: str = "") -> TextLines:
    """The lines of a text file, in an encoding or in that of its mark, else in UTF-8.

    Raises:
        ConfigError: There is no such encoding, or it must be given (`encodings.encoding_of`).
        DamagedError: The file is compressed, and cut or damaged.
    """
    with opened(path) as file:
        head = file.read(HEAD_BYTES)
    encoding = checked_encoding(encoding) if encoding else encoding_of(head, path)
    text = head.decode(encoding, "replace")
    first, end, _ = text.partition("\n")
    if not end:
        return TextLines(path, encoding, "\r" if "\r" in text else "\n")
    return TextLines(path, encoding, "\r\n" if first.endswith("\r") else "\n")
