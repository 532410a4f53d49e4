"""The format of a pool on disk: Arrow schemas, sizes, and `pool.json` as dataclasses."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.arrow_numpy import numpy_of
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.records import Bool
from cit_curate.storage.durable import FileEntry, file_entry, read_json, write_sealed

FORMAT_VERSION = 1
MANIFEST_NAME = "pool.json"
CATALOG_NAME = "pool.duckdb"

PART_ROWS = 65_536
ROW_GROUP_ROWS = 4_096
# Lanes share out row groups, so a small pool has smaller ones: about this many of them.
MIN_ROW_GROUPS = 64

PAIR_FIELDS = (
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("text_key", pa.string(), nullable=False),
    pa.field("caption", pa.string(), nullable=False),
    pa.field("image_uri", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    # BLAKE2b of the caption's UTF-8, 8-byte digest, little-endian; the same in every version.
    pa.field("caption_hash", pa.uint64(), nullable=False),
    # True if bytes that were not UTF-8 became U+FFFD, or the caption was cut at its byte limit.
    pa.field("text_fixed", pa.bool_(), nullable=False),
)

REJECT_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


def pair_schema(extra_types: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of the parts: the pool's own columns, then the carried ones."""
    return pa.schema([*PAIR_FIELDS, *(pa.field(name, kind) for name, kind in extra_types.items())])


def names_image_file(uris: pa.Array | pa.ChunkedArray) -> Bool:
    """Whether each image uri names a file, rather than nothing or a web address: bool [uris]."""
    is_web = pc.or_(pc.starts_with(uris, "http://"), pc.starts_with(uris, "https://"))
    is_file: Bool = (numpy_of(pc.binary_length(uris)) > 0) & ~numpy_of(is_web)
    return is_file


def group_rows(num_pairs: int) -> int:
    """The largest number of rows in a row group, for a pool of `num_pairs` pairs."""
    return min(max(num_pairs // MIN_ROW_GROUPS, 1), ROW_GROUP_ROWS)


@dataclass(frozen=True)
class Part:
    """One Parquet file of pairs; `row_groups` holds (rows, images) of each row group."""

    file: FileEntry
    row_groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RowGroup:
    """A row group: its part, its number within the part, and its rows and images."""

    part: int
    group: int
    rows: int
    images: int


@dataclass(frozen=True)
class SourceEntry:
    """The state of a source when the pool was built.

    Attributes:
        bytes: Size of the file, or of all files below the folder.
        mtime_ns: Time of the last change of the file; 0 for a folder, and for a file in a store.
        head_sha256: Hash of the file's first MiB, or of the names, sizes and times below the folder
            ("" in a pool of a version that did not hash them).
        image_root: Absolute folder that image paths of this source start from.
        num_records: Rows or images read, rejected ones included.
    """

    name: str
    path: str
    format: str
    image_root: str
    bytes: int
    mtime_ns: int
    head_sha256: str
    num_records: int = 0


@dataclass(frozen=True, kw_only=True)
class SubsetOrigin:
    """The origin of a pool that was cut out of another (`cit_curate.run.subset`).

    Attributes:
        pool_name: Name of the larger pool.
        pool_fingerprint: Its fingerprint.
        max_images: The number of its first images that were taken; None = all.
        run: Name of the run's folder; None if no run chose the pairs.
        selection_sha256: Hash over the hashes of the run's `selections`; None without a run.
    """

    pool_name: str
    pool_fingerprint: str
    max_images: int | None = None
    run: str | None = None
    selection_sha256: str | None = None

    @property
    def decides(self) -> tuple[str, int | None, str | None]:
        """The values that decide the pairs: subsets with equal values are equal."""
        return self.pool_fingerprint, self.max_images, self.selection_sha256


@dataclass(frozen=True)
class PoolManifest:
    """`pool.json`: the contents of a pool, its sources, and the hashes of its files.

    Attributes:
        id_lists: The lists that chose the images (YFCC only), with their SHA-256 and counts.
    """

    name: str
    fingerprint: str
    cleaning: str
    columns: Mapping[str, Any]
    num_pairs: int
    num_images: int
    num_with_image: int
    num_records: int
    text_keys: Mapping[str, int]
    rejects: Mapping[str, int]
    sources: tuple[SourceEntry, ...]
    parts: tuple[Part, ...]
    reject_parts: tuple[FileEntry, ...]
    id_lists: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = field(default=FORMAT_VERSION)
    # None unless the pool was cut out of another one.
    subset: SubsetOrigin | None = None


def parts_fingerprint(parts: Sequence[Part]) -> str:
    """SHA-256 over the parts' hashes; equal for the same pairs in the same order."""
    text = "\n".join([f"cit pool {FORMAT_VERSION}", *(part.file.sha256 for part in parts)])
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, manifest: PoolManifest) -> None:
    """Write `pool.json`."""
    value = asdict(manifest)
    if manifest.subset is None:
        # Older versions, which know no subsets, can then read every other pool.
        del value["subset"]
    write_sealed(folder / MANIFEST_NAME, value)


def read_manifest(folder: Path) -> PoolManifest:
    """Read `pool.json`.

    Raises:
        ConfigError: There is no pool, or a newer version made it.
        DamagedError: The manifest is damaged, or missing beside parts.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file() and not (folder / "pairs").is_dir():
        raise ConfigError(
            f"{folder} is no pool; make one with: cit pool build SOURCE --out {folder}"
        )
    return manifest_of(read_json(path), str(path))


def manifest_of(value: Any, path: str) -> PoolManifest:
    """The manifest from parsed JSON; `path` is for messages.

    Raises:
        ConfigError: A newer version made it.
        DamagedError: It is damaged.
    """
    try:
        version = value["format_version"]
        if version > FORMAT_VERSION:
            raise ConfigError(
                f"{path} has format version {version}, this cit reads {FORMAT_VERSION}; "
                "use a newer cit"
            )
        manifest = PoolManifest(
            **{
                **value,
                "sources": tuple(SourceEntry(**source) for source in value["sources"]),
                "parts": tuple(_part(part, path) for part in value["parts"]),
                "reject_parts": tuple(file_entry(entry, path) for entry in value["reject_parts"]),
                "subset": SubsetOrigin(**value["subset"]) if value.get("subset") else None,
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: {error!r}; build the pool again") from error
    if manifest.fingerprint != parts_fingerprint(manifest.parts):
        raise DamagedError(f"{path} has changed since it was written: its fingerprint differs")
    return manifest


def _part(value: Mapping[str, Any], path: str) -> Part:
    groups = tuple((int(rows), int(images)) for rows, images in value["row_groups"])
    return Part(file_entry(value["file"], path), groups)
