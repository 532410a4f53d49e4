"""Members of a tar, byte for byte as `tarfile` writes them, and faster for plain ones.

A plain member is a regular file with a short ASCII name. `tarfile` spends longer on its header than
a disk on its bytes; here the header is a template with name, size and checksum filled in. Tests
compare the bytes with those of `webdataset.TarWriter`.
"""

import tarfile

_BLOCK = tarfile.BLOCKSIZE
_NAME_BYTES = 100
_MAX_PLAIN_BYTES = 8**11  # what 11 octal digits hold
# The owner that webdataset writes.
_OWNER = "bigdata"
_MODE = 0o444


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, _MODE, _OWNER, _OWNER
    # No clock time, so that the same samples give the same bytes; a float, as in webdataset.
    info.mtime = 0.0
    return info


# The float makes an extra header, the same for every member, before the member's own.
_HEADERS = _info("", 0).tobuf(tarfile.PAX_FORMAT)
_TIME_HEADER, _TIME, _TEMPLATE = _HEADERS[:_BLOCK], _HEADERS[_BLOCK:-_BLOCK], _HEADERS[-_BLOCK:]
_BEFORE_SIZE, _AFTER_SIZE, _AFTER_CHECKSUM = _TEMPLATE[100:124], _TEMPLATE[135:148], _TEMPLATE[156:]
# The checksum of a header without name and size; the checksum field counts as spaces.
_REST_SUM = sum(_BEFORE_SIZE + b"\0" * 11 + _AFTER_SIZE + b" " * 8 + _AFTER_CHECKSUM)
_EMPTY_BLOCK = b"\0" * _BLOCK


def member(name: str, content: bytes) -> bytes:
    """A regular file in a tar: header, content, and zeros up to a whole block."""
    size = len(content)
    if len(name) > _NAME_BYTES or not name.isascii() or size >= _MAX_PLAIN_BYTES:
        header = _info(name, size).tobuf(tarfile.PAX_FORMAT)
    else:
        letters, digits = name.encode("ascii"), b"%011o" % size
        checksum = b"%06o\0 " % (_REST_SUM + sum(letters) + sum(digits))
        header = b"".join(
            (
                *(_TIME_HEADER, _TIME),
                letters.ljust(_NAME_BYTES, b"\0"),
                *(_BEFORE_SIZE, digits, _AFTER_SIZE, checksum, _AFTER_CHECKSUM),
            )
        )
    return b"".join((header, content, b"\0" * (-size % _BLOCK)))


def end_of_tar(size: int) -> bytes:
    """The zeros at the end of a tar whose members take `size` bytes."""
    empty = 2 * _BLOCK
    return b"\0" * (empty + -(size + empty) % tarfile.RECORDSIZE)
