"""Reader of the binary version of CIFAR-10 and CIFAR-100 (Krizhevsky 2009).

A record is one label byte (CIFAR-100: the coarse and then the fine label) and 3,072 bytes, the red,
green and blue planes of 32 x 32 pixels. Its authors' other versions are pickles and a MATLAB file;
pickles can run code and are never opened.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cit_curate.errors import ConfigError, DamagedError
from cit_train.evaluation.readers.labelled_images import SourceImages

__all__ = ["CIFAR_VERSIONS", "CifarVersion", "open_cifar_binary"]

_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE


class CifarVersion(NamedTuple):
    """The test split's file, a record's label bytes, the pickles' folder, and the download."""

    file: str
    label_bytes: int
    pickled: str
    download: str


CIFAR_VERSIONS: Mapping[str, CifarVersion] = MappingProxyType(
    {
        "cifar10": CifarVersion(
            "cifar-10-batches-bin/test_batch.bin",
            1,
            "cifar-10-batches-py",
            "cifar-10-binary.tar.gz",
        ),
        "cifar100": CifarVersion(
            "cifar-100-binary/test.bin", 2, "cifar-100-python", "cifar-100-binary.tar.gz"
        ),
    }
)


class CifarImages:
    """The images of one file, which is mapped and not read as a whole."""

    def __init__(self, path: Path, records: npt.NDArray[np.uint8]) -> None:
        self._path = path
        # uint8 [images, label bytes + 3072], mapped from the file
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def content(self, row: int) -> bytes:
        """The pixels, plane by plane."""
        return self._records[row, -_PIXEL_BYTES:].tobytes()

    def read(self, row: int) -> Image.Image:
        """The image as RGB."""
        planes = np.asarray(self._records[row, -_PIXEL_BYTES:]).reshape(3, _SIDE, _SIDE)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def title(self, row: int) -> str:
        """The file and the record."""
        return f"{self._path}: record {row}"


def open_cifar_binary(task: str, root: Path) -> SourceImages | None:
    """Open the test split below `root`; None = there is no CIFAR.

    Args:
        task: `cifar10` or `cifar100`.
        root: The parent of the folder `cifar-10-batches-bin` or `cifar-100-binary`.

    Raises:
        ConfigError: There are only the pickles.
        DamagedError: The file does not consist of whole records.
    """
    version = CIFAR_VERSIONS[task]
    path = root / version.file
    if not path.is_file():
        if (root / version.pickled).is_dir():
            raise ConfigError(
                f"{root / version.pickled} consists of pickles, which can run code and are never "
                f"opened; unpack {version.download}, the binary version, beside it, or use a "
                "WebDataset or Parquet export"
            )
        return None
    record_bytes, size = version.label_bytes + _PIXEL_BYTES, path.stat().st_size
    if not size or size % record_bytes:
        raise DamagedError(
            f"{path} has {size:,} bytes, not a multiple of the {record_bytes:,} of a record; "
            f"unpack {version.download} again"
        )
    records = np.memmap(path, dtype=np.uint8, mode="r", shape=(size // record_bytes, record_bytes))
    return SourceImages(
        reader="CIFAR binary",
        images=CifarImages(path, records),
        labels=records[:, version.label_bytes - 1].astype(np.int64),
        names=None,
    )
