"""YFCC100M as a source: its files on the command line, and the reader of its rows."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cit_curate.config import YfccFormat
from cit_curate.errors import ConfigError
from cit_curate.sources.rows import RawPairs, SourceReader
from cit_curate.sources.yfcc.format import CARRIED, IdList, UInt8, read_image_ids, read_subset
from cit_curate.sources.yfcc.lines import read_range
from cit_curate.storage.durable import atomic_file

RANGE_BYTES = 64 << 20
_IDS_NAME = "ids.npy"


@dataclass(frozen=True, kw_only=True)
class YfccSource:
    """The files that a YFCC pool is made from.

    Attributes:
        metadata: The unpacked `yfcc100m_dataset.txt`.
        image_ids: The NumPy file with the ids of the images on disk (`flickr_unique_ids.npy`).
        subset: CLIP's `yfcc100m_subset_data.tsv`, for yfcc15m only.
        image_root: The folder that holds `images/AA/BBB.zip`; default the metadata's own folder.
        reference_empty_tags: Whether to keep the tag text `,` of images without tags, as the
            reference does.
        range_bytes: The bytes of metadata that a worker reads at a time.
    """

    format: YfccFormat
    metadata: Path
    image_ids: Path
    subset: Path | None = None
    image_root: Path | None = None
    reference_empty_tags: bool = False
    range_bytes: int = RANGE_BYTES

    def __post_init__(self) -> None:
        if self.format == "yfcc15m" and self.subset is None:
            raise ConfigError(
                "--format yfcc15m needs --subset yfcc100m_subset_data.tsv, CLIP's list of images"
            )
        if self.format == "yfcc100m" and self.subset is not None:
            raise ConfigError(
                "--subset is for --format yfcc15m; yfcc100m takes every image on disk"
            )
        if not self.metadata.is_file():
            raise ConfigError(f"--metadata {self.metadata}: there is no such file")
        with self.metadata.open("rb") as stream:
            if stream.read(3) in (b"BZh", b"\x1f\x8b\x08"):
                raise ConfigError(
                    f"{self.metadata} is compressed; unpack it first (bunzip2 -k), so that it can "
                    "be read in parallel"
                )
        if self.image_root is not None and not self.image_root.is_dir():
            raise ConfigError(f"the image root {self.image_root} is not a folder")


def open_yfcc(source: YfccSource) -> SourceReader:
    """Open the metadata of YFCC100M; of an image with several lines, the first counts.

    Raises:
        ConfigError: When the lists are read: a list is missing or holds no image ids.
        DamagedError: When the lists are read: a list is damaged.
    """
    metadata = source.metadata.resolve()

    def read(folder: Path, start: int, stop: int) -> Iterator[RawPairs]:
        bits = np.load(folder / _IDS_NAME, mmap_mode="r", allow_pickle=False)
        empty_tags = source.reference_empty_tags
        return read_range(metadata, start, stop, bits, reference_empty_tags=empty_tags)

    return SourceReader(
        columns=None,
        extra_types={name: pa.string() for name in CARRIED},
        range_bytes=source.range_bytes,
        read_range=read,
        row_is_image=True,
        read_lists=lambda: _read_lists(source),
    )


@dataclass(frozen=True)
class YfccLists:
    """The lists of image ids that select lines of the metadata.

    Attributes:
        lists: The lists, by their name in `pool.json`.
        bits: The ids that are in all lists, as from `read_image_ids`.
        reference_empty_tags: As in `YfccSource`.
    """

    lists: dict[str, IdList]
    bits: UInt8
    reference_empty_tags: bool

    @property
    def num_ids(self) -> int:
        """The number of ids in all lists; an id in both counts twice."""
        return sum(id_list.num_ids for id_list in self.lists.values())

    @property
    def described(self) -> dict[str, Any]:
        """The entries of `pool.json` that are known before any line is read."""
        lists = {name: asdict(id_list) for name, id_list in self.lists.items()}
        return {**lists, "reference_empty_tags": self.reference_empty_tags}

    def save(self, folder: Path) -> None:
        """Write the bits into the folder of the blocks, for the workers."""
        content = BytesIO()
        np.save(content, self.bits, allow_pickle=False)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / _IDS_NAME) as temporary:
            # Unlike with `np.save` to a path, the error of a full disk has its errno.
            temporary.write_bytes(content.getbuffer())

    def found(self, num_rows: int, num_images: int) -> dict[str, Any]:
        """The further entries of `pool.json`, known once all lines are read."""
        num_ids = int(np.bitwise_count(self.bits).sum(dtype=np.int64))
        return {
            "num_ids": num_ids,
            "num_ids_without_line": num_ids - num_images,
            "num_lines_listed": num_rows,
        }


def _read_lists(source: YfccSource) -> YfccLists:
    image_ids, bits = read_image_ids(source.image_ids)
    lists = {"image_ids": image_ids}
    if source.subset is not None:
        lists["subset"], subset_bits = read_subset(source.subset)
        bits = bits & subset_bits
    return YfccLists(lists, bits, source.reference_empty_tags)
