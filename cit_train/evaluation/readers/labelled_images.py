"""The border between readers and the evaluation: images, their labels, their classes.

A reader returns `SourceImages`, with the labels of its format; `labels.attach` maps those to
positions in a task's class list and returns `LabelledImages`.
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

__all__ = [
    "DEFAULT_FLAGS",
    "Flags",
    "ImageFiles",
    "Images",
    "LabelledImages",
    "SourceImages",
    "spread_rows",
]


@dataclass(frozen=True)
class Flags:
    """The options that name the images and the class list, for messages.

    Attributes:
        data: The option of the folder of images.
        classes: The option of the class list.
    """

    data: str = "--data"
    classes: str = "--classes"


DEFAULT_FLAGS = Flags()


class Images(Protocol):
    """Images by row; `content` and `read` are called from several threads at once."""

    def __len__(self) -> int:
        """The number of images, readable or not."""

    def content(self, row: int) -> bytes:
        """The bytes that determine the image, such as those of its file.

        Raises:
            ImageRejected: The image cannot be used; the error has the reason.
        """

    def read(self, row: int) -> Image.Image:
        """The image as RGB.

        Raises:
            ImageRejected: The image cannot be used; the error has the reason.
        """

    def title(self, row: int) -> str:
        """The image's location, for messages."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files; a link that leads out of its own folder is rejected."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def content(self, row: int) -> bytes:
        """The bytes of the file."""
        path = self.paths[row]
        return read_image_bytes(path.parent, path.name)

    def read(self, row: int) -> Image.Image:
        """The image as RGB, upright, on white."""
        return decoders().read_image(self.content(row))

    def title(self, row: int) -> str:
        """The image's path."""
        return str(self.paths[row])


@dataclass(frozen=True, kw_only=True)
class SourceImages:
    """Images with the labels of their source.

    Attributes:
        reader: The reader's name, for people.
        images: The images.
        labels: int64 [images], positions in `names`; without names, the source's own numbers.
        names: The source's class names; None = it has numbers only.
        names_are_readable: Whether the names may be used in prompts; a folder's name may be an
            identifier.
        prompts: The prompts beside the images, with `{}` for the class name.
        naming: How a class list was matched to the labels, for people; empty = no list was given.
        notes: Remarks that a person needs to interpret the result.
    """

    reader: str
    images: Images
    labels: Int64
    names: tuple[MetadataEntry, ...] | None
    names_are_readable: bool = True
    prompts: tuple[str, ...] = ()
    naming: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images whose labels are positions in a list of classes.

    Attributes:
        reader: The reader's name, for people.
        images: The images.
        targets: int64 [images], positions in `classes`.
        classes: The classes to choose from, with or without images.
        labels: [classes], the source's label of each class; distinguishes classes of one name.
        prompts: The prompts beside the images; empty = none.
        naming: How a class list was matched to the labels, for people; empty = no list was given.
        notes: Remarks that a person needs to interpret the result.
    """

    reader: str
    images: Images
    targets: Int64
    classes: tuple[MetadataEntry, ...]
    labels: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    naming: str = ""
    notes: tuple[str, ...] = ()


def spread_rows(num_images: int, limit: int | None) -> Int64:
    """At most `limit` rows, evenly spaced over all of them.

    Data sets are sorted by class, so the first rows would be of one class.

    Args:
        num_images: The number of rows.
        limit: The maximum number of rows, at least 1; None = all.

    Returns:
        int64 [min(limit, num_images)], ascending, without repeats.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is None or limit >= num_images:
        return np.arange(num_images, dtype=np.int64)
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    # The middle of each of `limit` equal parts favours neither the first nor the last class.
    return (2 * np.arange(limit, dtype=np.int64) + 1) * num_images // (2 * limit)
