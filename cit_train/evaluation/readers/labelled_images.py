"""The border between readers of data sets and the evaluation: images, their labels, their classes.

A reader gives `FoundImages`, with the labels as its format has them; `labels.attach` turns those
into positions in a task's class list, and the result is `LabelledImages`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from cit_curate.images.decoders import decoders
from cit_curate.images.read import read_image_bytes
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.records import Int64

__all__ = ["FoundImages", "ImageFiles", "Images", "LabelledImages", "spread_rows"]


class Images(Protocol):
    """Images by their row; read from several threads at once."""

    def __len__(self) -> int:
        """How many there are, readable or not."""

    def read(self, row: int) -> Image.Image:
        """The image as RGB.

        Raises:
            ImageRejected: It cannot be used; the reason is in it.
        """

    def title(self, row: int) -> str:
        """Where the image is, for messages."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files. A link in the place of an image leads nowhere outside of its own folder."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> Image.Image:
        """The image as RGB, upright, on white."""
        path = self.paths[row]
        return decoders().read_image(read_image_bytes(path.parent, path.name))

    def title(self, row: int) -> str:
        """Its path."""
        return str(self.paths[row])


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """What a reader found.

    Attributes:
        source: The reader, as shown to people.
        images: The images.
        labels: int64 [images]: positions in `names`; without names, what the source says itself.
        names: What the source calls its classes; None when it has numbers only.
        names_are_readable: Whether the names could stand in a prompt, if they had to; a folder's
            name may as well be an identifier.
        prompts: That lie beside the images, with `{}` for the class name.
        notes: What a person must know to read the result.
    """

    source: str
    images: Images
    labels: Int64
    names: tuple[MetadataEntry, ...] | None
    names_are_readable: bool = True
    prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images whose labels are positions in a list of classes.

    Attributes:
        source: The reader, as shown to people.
        images: The images.
        targets: int64 [images], positions in `classes`.
        classes: To choose from, with or without images.
        labels: [classes] What the source calls each class; tells classes of one name apart.
        prompts: That lie beside the images; empty when there are none.
        notes: What a person must know to read the result.
    """

    source: str
    images: Images
    targets: Int64
    classes: tuple[MetadataEntry, ...]
    labels: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def spread_rows(num_images: int, limit: int | None) -> Int64:
    """At most `limit` rows, at equal distances over all of them.

    Data sets lie sorted by class; the first rows would be of one class.

    Args:
        num_images: Rows there are.
        limit: At least 1; None = all rows.

    Returns:
        int64 [min(limit, num_images)], ascending, without repeats.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is None or limit >= num_images:
        return np.arange(num_images, dtype=np.int64)
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    # The middle of each of `limit` equal parts: the first and the last class are not favoured.
    return (2 * np.arange(limit, dtype=np.int64) + 1) * num_images // (2 * limit)
