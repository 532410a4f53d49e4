"""RUN/metrics.jsonl: loss, accuracy and seconds, one JSON object a line.

A line ends with the member `line_crc32`, the CRC-32 of the bytes before it as eight hex digits. In
a file of an older version, no line has one.
"""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import atomic_file

Record = dict[str, Any]

_SEAL = "line_crc32"
_SEAL_START = f', "{_SEAL}": "'.encode()
_NO_RECORD = (LookupError, TypeError, ValueError)


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record, which has its `update`."""
    head = json.dumps(record, ensure_ascii=False).encode().removesuffix(b"}")
    with path.open("ab") as stream:
        stream.write(_sealed(head))


def read_records(path: Path) -> list[Record]:
    """The records, without their checksums; a last line cut by a kill is left out.

    Raises:
        DamagedError: A line is no JSON object, or has changed since it was written.
    """
    records, lines = [], _whole_lines(path)
    read = _older_record if _is_older(lines) else _record
    for number, line in enumerate(lines, 1):
        try:
            records.append(read(line))
        except _NO_RECORD as error:
            raise DamagedError(f"{path} is damaged in line {number}: {error!r}") from error
    return records


def sound_lines(path: Path) -> list[bytes]:
    """The lines that can be read, as bytes."""
    lines = _whole_lines(path)
    read = _older_record if _is_older(lines) else _record
    return [line for line in lines if _is_sound(line, read)]


def keep_records(path: Path, stays: Callable[[Record], bool]) -> None:
    """Remove the records for which `stays` is false, in one replacement of the file.

    The file is left alone where all stay. Lines of an older version get checksums, like the lines
    that will follow them.

    Raises:
        DamagedError: See `read_records`.
    """
    records = read_records(path)
    lines = _whole_lines(path)
    if _is_older(lines):
        lines = [_sealed(line.removesuffix(b"}\n")) for line in lines]
    kept = b"".join(line for line, record in zip(lines, records, strict=True) if stays(record))
    if path.is_file() and kept != path.read_bytes():
        with atomic_file(path) as temporary:
            temporary.write_bytes(kept)


def _sealed(head: bytes) -> bytes:
    return b"".join((head, _SEAL_START, f"{zlib.crc32(head):08x}".encode(), b'"}\n'))


def _is_older(lines: Sequence[bytes]) -> bool:
    return not any(_SEAL_START in line for line in lines)


def _older_record(line: bytes) -> Record:
    record: Record = dict(json.loads(line))
    int(record["update"])
    return record


def _record(line: bytes) -> Record:
    record = _older_record(line)
    if line != _sealed(line.rpartition(_SEAL_START)[0]):
        raise ValueError("its CRC-32 differs")
    del record[_SEAL]
    return record


def _is_sound(line: bytes, read: Callable[[bytes], Record]) -> bool:
    try:
        read(line)
    except _NO_RECORD:
        return False
    return True


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that have an end, with it; empty ones are left out."""
    content = path.read_bytes() if path.is_file() else b""
    return [line + b"\n" for line in content.split(b"\n")[:-1] if line]
