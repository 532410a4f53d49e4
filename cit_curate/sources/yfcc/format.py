"""YFCC100M: its metadata file, its lists of image ids, and the uris of its images.

`yfcc100m_dataset.txt` has a line per photo or video, no header and no quoting: 25 columns separated
by tabs. Column 0 is the image id, the number of the line from 0 (`docs/method.md`, YFCC).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.records import Bool
from cit_curate.storage.durable import file_sha256

UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]

COLUMNS = (
    *("line_number", "photo_id", "hash", "user_nsid", "user_nickname", "date_taken"),
    *("date_uploaded", "capture_device", "title", "description", "user_tags", "machine_tags"),
    *("longitude", "latitude", "accuracy", "page_url", "download_url", "license_name"),
    *("license_url", "server_id", "farm_id", "secret", "secret_original", "extension", "marker"),
)
NUM_COLUMNS = len(COLUMNS)
# Copied into the pool: the licence, and the page that names the author to credit.
CARRIED = ("license_name", "license_url", "page_url")
TEXT_KEYS = ("title", "desc", "tag")

ID_DIGITS = 8
NUM_IDS = 10**ID_DIGITS

_BLOCK_BYTES = 4 << 20
_IDS_PER_CHUNK = 1 << 20
_NEWLINE, _TAB, _CR, _ZERO = b"\n\t\r0"
# The four ASCII digits of each number from 0 to 9,999, as one uint32 so that one lookup gets all.
_FOUR_DIGITS = np.array([b"%04d" % number for number in range(10_000)]).view(np.uint32)


@dataclass(frozen=True)
class IdList:
    """A file of image ids.

    Attributes:
        path: The absolute path.
        sha256: The SHA-256 of the file's bytes, the list's fingerprint.
        num_ids: The number of distinct ids in it.
    """

    path: str
    sha256: str
    num_ids: int


def read_image_ids(path: Path) -> tuple[IdList, UInt8]:
    """The ids of the images on disk, from a NumPy file such as `flickr_unique_ids.npy`.

    Returns:
        The list, and its ids as bits: uint8 [NUM_IDS / 8], the highest bit of a byte first.

    Raises:
        ConfigError: The file is missing, or holds no list of image ids.
        DamagedError: The file is no NumPy file, or is cut.
    """
    _check_file(path, "--image-ids")
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        # NumPy takes an unknown file for a pickle, and its message says how to load that unsafely.
        reason = "it does not begin like one" if "pickle" in str(error) else error
        raise DamagedError(f"{path} is no whole NumPy file (.npy): {reason}") from error
    if not isinstance(ids, np.memmap) or ids.ndim != 1 or ids.dtype.kind not in "iu":
        content = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, np.ndarray) else "an archive"
        raise ConfigError(f"{path} holds {content}; image ids are a list (1-d) of integers")
    listed = np.zeros(NUM_IDS, np.bool_)
    for start in range(0, len(ids), _IDS_PER_CHUNK):
        # Not sliced from the memory map: its pages would count as memory of this process.
        offset = ids.offset + start * ids.itemsize
        chunk = np.fromfile(path, ids.dtype, count=_IDS_PER_CHUNK, offset=offset)
        bad = np.flatnonzero((chunk < 0) | (chunk >= NUM_IDS))
        if len(bad):
            raise ConfigError(
                f"{path}: entry {start + bad[0]:,} is {chunk[bad[0]]}; an image id is the number "
                f"of a line of the metadata, from 0 to {NUM_IDS - 1:,}"
            )
        listed[chunk] = True
    return _described(path, listed)


def read_subset(path: Path) -> tuple[IdList, UInt8]:
    """The ids of CLIP's subset: column 0 (the line number) of `yfcc100m_subset_data.tsv`.

    Returns:
        As `read_image_ids`.

    Raises:
        ConfigError: The file is missing, or it is the metadata.
        BadInputError: A line, named in the message, does not begin with an image id and a tab.
    """
    _check_file(path, "--subset")
    listed = np.zeros(NUM_IDS, np.bool_)
    line = 0
    with path.open("rb") as stream:
        # Lines of the metadata also begin with an id: as a list they would select every image.
        if stream.readline(_BLOCK_BYTES).count(b"\t") >= NUM_COLUMNS - 1:
            raise ConfigError(
                f"--subset {path} looks like the metadata: its first line has {NUM_COLUMNS} "
                "columns, CLIP's list has 3"
            )
        stream.seek(0)
        while block := stream.read(_BLOCK_BYTES):
            if not block.endswith(b"\n"):
                block += stream.readline(_BLOCK_BYTES)
            data = np.frombuffer(block, np.uint8)
            starts, ends = line_bounds(data)
            ids, good = leading_ids(data, starts)
            for index in np.flatnonzero(~good):
                text = block[starts[index] : ends[index]]
                if text.strip():
                    shown = ascii(text[:60].decode("utf-8", "replace"))
                    raise BadInputError(
                        f"{path} line {line + index + 1}: {shown} does not begin with a line "
                        "number of the metadata and a tab"
                    )
            listed[ids[good]] = True
            line += len(starts)
    return _described(path, listed)


def are_listed(ids: UInt32, bits: UInt8) -> Bool:
    """Whether each id is in a list: bool [ids]; the ids must be below `NUM_IDS`."""
    masks = np.uint8(128) >> (ids & 7).astype(np.uint8)
    listed: Bool = (bits[ids >> 3] & masks).astype(np.bool_)
    return listed


def line_bounds(data: UInt8) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The start and the end of each line of a block, without its newline: int64 [lines] each."""
    newlines = np.flatnonzero(data == _NEWLINE)
    cut = len(data) > 0 and data[-1] != _NEWLINE
    ends = np.append(newlines, len(data)) if cut else newlines
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    return starts, ends


def leading_ids(data: UInt8, starts: npt.NDArray[np.int64]) -> tuple[UInt32, Bool]:
    """The image id at the start of each line of a block: 1 to 8 digits, then a tab.

    Returns:
        uint32 [lines], the ids, 0 where a line has none; and bool [lines], whether it has one.
    """
    ids = np.zeros(len(starts), np.uint32)
    reading = np.ones(len(starts), np.bool_)
    good = np.zeros(len(starts), np.bool_)
    for position in range(ID_DIGITS + 1):
        # A newline ends the id of its line. Past the end of the block, its last byte is repeated.
        letters = data.take(starts + position, mode="clip")
        if position:
            good |= reading & (letters == _TAB)
        digits = letters - np.uint8(_ZERO)
        reading &= digits < 10
        ids = np.where(reading, ids * np.uint32(10) + digits, ids)
    return np.where(good, ids, np.uint32(0)).astype(np.uint32), good


def image_ids_of(ids: UInt32) -> pa.Array:
    """Each id padded with zeros to 8 digits, as in pair keys: string [ids]."""
    return _fixed_width(_digits(ids))


def image_uris_of(ids: UInt32) -> pa.Array:
    """The uri of each image, `zip://images/AA/BBB.zip#CCC.jpg` for id AABBBCCC: string [ids]."""
    pattern = np.frombuffer(b"zip://images/AA/BBB.zip#CCC.jpg", np.uint8)
    letters = np.tile(pattern, (len(ids), 1))
    digits = _digits(ids)
    letters[:, 13:15] = digits[:, :2]
    letters[:, 16:19] = digits[:, 2:5]
    letters[:, 24:27] = digits[:, 5:]
    return _fixed_width(letters)


def _digits(ids: UInt32) -> UInt8:
    """uint8 [ids, 8]: the decimal digits of each id as ASCII."""
    halves = np.stack(np.divmod(ids, np.uint32(len(_FOUR_DIGITS))), axis=1)
    digits: UInt8 = _FOUR_DIGITS[halves].view(np.uint8)
    return digits


def _fixed_width(letters: UInt8) -> pa.Array:
    """ASCII letters, uint8 [rows, width], as one string per row."""
    rows, width = letters.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(width)
    content = pa.py_buffer(np.ascontiguousarray(letters))
    return pa.Array.from_buffers(pa.string(), rows, [None, pa.py_buffer(offsets), content])


def _check_file(path: Path, flag: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{flag} {path}: there is no such file")


def _described(path: Path, listed: Bool) -> tuple[IdList, UInt8]:
    id_list = IdList(str(path.resolve()), file_sha256(path), int(np.count_nonzero(listed)))
    return id_list, np.packbits(listed)
