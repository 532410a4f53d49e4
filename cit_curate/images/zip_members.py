"""One member of a zip, without parsing the zip's whole table of contents.

`zipfile` creates an object for every member when it opens a zip: for 1,000 members this takes
longer than a hundred images. YFCC has tens of thousands of such zips, and training visits them in
random order. So only the record of the wanted member is looked up in the raw central directory
(APPNOTE.TXT 4.3.12, 4.3.14–4.3.16), and `zipfile` reads a zip of this one member: it handles
compression, CRC, sizes and names.
"""

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from cit_curate.images.open_file import BoundedCache, OpenFile
from cit_curate.images.rejected import ImageRejected

# A picture hardly shrinks further in a zip; small blank bitmaps do, and are harmless.
MAX_RATIO = 200
MIN_RATIO_BYTES = 1 << 20

# 16 MiB hold the tables of contents of 300 zips of 1,000 members.
_CACHE_BYTES = 16 << 20
# Above this size, searching is slower than a dictionary, which takes ten times the memory.
_SEARCHED_BYTES = 1 << 18
_MAX_DIRECTORY_BYTES = 1 << 30

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_RECORD = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\3\4"
_MAX32 = 0xFFFFFFFF

_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True)
class Directory:
    """The central directory of a zip.

    Attributes:
        records: The raw bytes.
        shift: The number of bytes before the zip proper, as in a self-extracting one.
        starts: The offset of each name's record; None where searching `records` is faster.
    """

    records: bytes
    shift: int
    starts: dict[bytes, int] | None

    def find(self, name: bytes) -> int | None:
        """The offset of the last record with exactly this name."""
        if self.starts is not None:
            return self.starts.get(name)
        end = len(self.records)
        while (position := self.records.rfind(name, 0, end)) >= _RECORD.size:
            start = position - _RECORD.size
            if self.records.startswith(b"PK\1\2", start):
                (length,) = struct.unpack_from("<H", self.records, start + 28)
                if length == len(name):
                    return start
            end = position + len(name) - 1
        return None


@dataclass(frozen=True)
class _Record:
    raw: bytes
    flags: int
    packed_bytes: int
    num_bytes: int
    mode: int
    offset: int


_directories: BoundedCache[Directory] = BoundedCache(_CACHE_BYTES)


def read_zip_member(file: OpenFile, member: str, *, max_bytes: int) -> bytes:
    """The bytes of the member with exactly this name; they are never written to disk.

    Raises:
        ImageRejected: The zip is damaged, as a whole (`unreadable_archive`) or at the member, or
            has no such member. Or the member is a folder, a link, encrypted, too large, compressed
            too strongly, different from its record, or overlaps another member.
    """
    where = f"{file.path}, member {member!a}"
    try:
        directory = _directories.get(file.identity, lambda: _directory(file))
    except _DAMAGE as error:
        raise ImageRejected("unreadable_archive", f"{where}: {error}") from error
    try:
        start = _find(directory, member)
        if start is None:
            raise ImageRejected("missing_image", f"{where}: the zip has no such member")
        record = _record(directory, start)
        _check(record, member, where, max_bytes)
        local = _local_part(file, record)
        _check_overlap(directory, record, local)
        with zipfile.ZipFile(BytesIO(_zip_of_one(local, record))) as archive:
            (info,) = archive.infolist()
            with archive.open(info) as stream:
                data = stream.read(max_bytes + 1)
    except _DAMAGE as error:
        raise ImageRejected("damaged_archive", f"{where}: {error}") from error
    if len(data) != record.num_bytes:
        raise ImageRejected(
            "damaged_archive",
            f"{where}: {len(data):,} bytes where the zip says {record.num_bytes:,}",
        )
    return data


def _directory(file: OpenFile) -> tuple[Directory, int]:
    """The central directory, and the bytes that it takes in the cache."""
    tail_bytes = min(file.num_bytes, _END.size + 0xFFFF)
    tail = file.read(file.num_bytes - tail_bytes, tail_bytes)
    position = tail.rfind(b"PK\5\6", 0, max(len(tail) - _END.size + 4, 0))
    if position < 0:
        raise zipfile.BadZipFile(f"no zip, or cut: its end is not in the last {tail_bytes:,} bytes")
    size, offset = _END.unpack_from(tail, position)[5:7]
    end = file.num_bytes - tail_bytes + position
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and (raw := file.read(locator, _END64_LOCATOR.size)).startswith(b"PK\6\7"):
        # Every writer puts the locator right after its record; `zipfile` relies on that, too.
        end = locator - _END64.size
        if end < 0:
            raise zipfile.BadZipFile("its zip64 end is cut")
        raw = file.read(end, _END64.size)
        if not raw.startswith(b"PK\6\6"):
            raise zipfile.BadZipFile("its zip64 end is not where it should be")
        size, offset = _END64.unpack(raw)[8:10]
    shift = end - size - offset
    if shift < 0 or size > _MAX_DIRECTORY_BYTES:
        raise zipfile.BadZipFile(f"its table of contents of {size:,} bytes does not fit in")
    records = file.read(end - size, size)
    if size > _SEARCHED_BYTES:
        starts = dict(_names(records))
        return Directory(records, shift, starts), size + 150 * len(starts)
    return Directory(records, shift, None), size


def _names(records: bytes) -> Iterator[tuple[bytes, int]]:
    start = 0
    while start + _RECORD.size <= len(records):
        if not records.startswith(b"PK\1\2", start):
            raise zipfile.BadZipFile(f"its table of contents is damaged at byte {start:,}")
        name, extra, comment = struct.unpack_from("<3H", records, start + 28)
        first = start + _RECORD.size
        yield records[first : first + name], start
        start = first + name + extra + comment


def _find(directory: Directory, member: str) -> int | None:
    start = directory.find(member.encode("utf-8", "surrogateescape"))
    if start is None and not member.isascii():
        # Names without the UTF-8 flag are in the code page of the first IBM PC.
        try:
            return directory.find(member.encode("cp437"))
        except UnicodeEncodeError:
            return None
    return start


def _record(directory: Directory, start: int) -> _Record:
    fields = _RECORD.unpack_from(directory.records, start)
    flags, packed, size = fields[3], fields[8], fields[9]
    name, extra, offset = fields[10], fields[11], fields[16]
    end = start + _RECORD.size + name + extra
    values = [size, packed, offset]
    if _MAX32 in values:
        values = _with_zip64(values, directory.records[end - extra : end])
    return _Record(
        raw=directory.records[start:end],
        flags=flags,
        packed_bytes=values[1],
        num_bytes=values[0],
        mode=fields[15] >> 16,
        offset=values[2] + directory.shift,
    )


def _with_zip64(values: list[int], extra: bytes) -> list[int]:
    """Size, packed size and offset; those that exceed 32 bits are taken from extra field 1."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            return [next(wide, value) if value == _MAX32 else value for value in values]
        extra = extra[4 + length :]
    return values


def _check(record: _Record, member: str, where: str, max_bytes: int) -> None:
    if member.endswith("/") or stat.S_IFMT(record.mode) not in (0, stat.S_IFREG):
        raise ImageRejected("missing_image", f"{where} is not a plain file")
    if record.flags & 0x1:
        raise ImageRejected("encrypted_image", f"{where} is encrypted")
    if max(record.num_bytes, record.packed_bytes) > max_bytes:
        size = max(record.num_bytes, record.packed_bytes)
        raise ImageRejected("too_many_bytes", f"{where}: {size:,} bytes, more than {max_bytes:,}")
    if record.num_bytes > max(MIN_RATIO_BYTES, MAX_RATIO * record.packed_bytes):
        raise ImageRejected(
            "too_many_bytes",
            f"{where}: {record.packed_bytes:,} bytes would become {record.num_bytes:,}, more than "
            f"{MAX_RATIO} times as many",
        )


def _local_part(file: OpenFile, record: _Record) -> bytes:
    """The bytes of a member outside of the directory: header, name, extra fields, content."""
    head = file.read(record.offset, _LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(_LOCAL_SIGNATURE):
        raise zipfile.BadZipFile("the member does not start where the zip says")
    name, extra = _LOCAL.unpack(head)[9:11]
    size = _LOCAL.size + name + extra + record.packed_bytes
    local = file.read(record.offset, size)
    if len(local) < size:
        raise zipfile.BadZipFile("the zip is cut inside the member")
    return local


def _check_overlap(directory: Directory, record: _Record, local: bytes) -> None:
    """Refuse a member inside which another one of the directory starts.

    Pictures hardly ever contain the signature; only then is the directory searched.
    """
    if local.find(_LOCAL_SIGNATURE, 1) < 0:
        return
    for name, start in _names(directory.records):
        shift = _record(directory, start).offset - record.offset
        if shift > 0 and local.startswith(_LOCAL_SIGNATURE, shift):
            other = name.decode("utf-8", "replace")
            raise zipfile.BadZipFile(f"it overlaps the member {other!a}, which starts inside it")


def _zip_of_one(local: bytes, record: _Record) -> bytes:
    """A zip of the member alone: its local part, its record with offset 0, and an end."""
    raw = bytearray(record.raw)
    struct.pack_into("<H", raw, 32, 0)  # without its comment
    struct.pack_into("<L", raw, 42, 0)
    end = _END.pack(b"PK\5\6", 0, 0, 1, 1, len(raw), len(local), 0)
    return b"".join((local, raw, end))
