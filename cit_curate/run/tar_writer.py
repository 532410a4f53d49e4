"""Members of a tar as `tarfile` writes them, for the plain ones among them quickly.

A plain member is a regular file with a short ASCII name. `tarfile` spends longer on its header than
a disk on its bytes; here the header is a template with name, size and checksum filled in. The tests
hold the bytes to those of `webdataset.TarWriter`.
"""

import tarfile

_BLOCK = tarfile.BLOCKSIZE
_NAME_BYTES = 100
_MAX_PLAIN_BYTES = 8**11  # what 11 octal digits hold
# As webdataset names the owner of what it writes.
_OWNER = "bigdata"
_MODE = 0o444


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, _MODE, _OWNER, _OWNER
    # No clock time, so that the same samples are the same bytes; a float, as webdataset writes it.
    info.mtime = 0.0
    return info


# A float makes a header of its own, the same one for every member; then comes the member's.
_HEADERS = _info("", 0).tobuf(tarfile.PAX_FORMAT)
_TIME_HEADER, _TIME, _TEMPLATE = _HEADERS[:_BLOCK], _HEADERS[_BLOCK:-_BLOCK], _HEADERS[-_BLOCK:]
_BEFORE_SIZE, _AFTER_SIZE, _AFTER_CHECKSUM = _TEMPLATE[100:124], _TEMPLATE[135:148], _TEMPLATE[156:]
# Of a header without name and size; the checksum itself counts as spaces.
_REST_SUM = sum(_BEFORE_SIZE + b"\0" * 11 + _AFTER_SIZE + b" " * 8 + _AFTER_CHECKSUM)
_EMPTY_BLOCK = b"\0" * _BLOCK


def member(name: str, content: bytes) -> bytes:
    """A regular file as it stands in a tar: header, content, zeros up to a whole block."""
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
    """What follows the members of a tar, which are so many bytes."""
    empty = 2 * _BLOCK
    return b"\0" * (empty + -(size + empty) % tarfile.RECORDSIZE)
