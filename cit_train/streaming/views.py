"""From an image's bytes to random crops of it, the plain way or a faster one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cit_curate.errors import DamagedError
from cit_curate.images.read import ImageRejected, OpenedImage
from cit_train.transforms import CropBox, random_resized_crop, resized_crop

# What a JPEG's cosine transform can be cut down to: 1/8, 1/4, 1/2.
_REDUCTIONS = (8, 4, 2)


@dataclass(frozen=True, kw_only=True)
class ViewMaker:
    """Makes training views; all that one depends on besides the bytes and the random numbers.

    Attributes:
        side: Of a view, in pixels.
        max_pixels: Images with more are refused by their header.
        fast: Decode a JPEG at 1/2, 1/4 or 1/8 where its crop still has the pixels of the view, and
            resize with torch's vector instructions, the crop alone. The same
            boxes are drawn, and rounded to the reduced picture's pixels; at edges a reduced view
            differs visibly from a plain one (docs/performance.md, "Images").
    """

    side: int
    max_pixels: int
    fast: bool = False

    @property
    def name(self) -> str:
        """What tells its views from those of others."""
        return f"side{self.side}-{self.max_pixels}{'-fast' if self.fast else ''}"

    def __call__(self, data: bytes, rngs: Sequence[np.random.Generator], out: Tensor) -> None:
        """Make one view of an image for each random generator; the image is decoded once.

        Args:
            data: The bytes of an image that was checked when it was written.
            rngs: Each chooses a crop.
            out: uint8 [views, 3, side, side], written to.

        Raises:
            DamagedError: It no longer decodes.
        """
        try:
            opened = OpenedImage(data, max_pixels=self.max_pixels)
            boxes = [random_resized_crop(opened.size, rng) for rng in rngs]
            reduction = self._reduction(boxes) if self.fast else 1
            image = opened.read(reduction=reduction)
        except ImageRejected as error:
            raise DamagedError(f"an image of a shard no longer decodes: {error}") from error
        for box, view in zip(boxes, out, strict=True):
            if self.fast:
                view.copy_(_fast_crop(image, _reduced(box, reduction, image.size), self.side))
            else:
                view.copy_(resized_crop(image, box, side=self.side))

    def _reduction(self, boxes: Sequence[CropBox]) -> int:
        shortest = min(
            min(box.right - box.left, box.lower - box.upper) // self.side for box in boxes
        )
        return next((part for part in _REDUCTIONS if part <= shortest), 1)


def empty_views(num_views: int, side: int, *, shared: bool = False) -> Tensor:
    """Room for views: uint8 [views, 3, side, side], channels last, as pictures lie in memory.

    Args:
        num_views: How many.
        side: In pixels.
        shared: In memory that other processes map, so that a worker's views are not copied.
    """
    # [views, side, side, 3]
    room = torch.empty((num_views, side, side, 3), dtype=torch.uint8)
    if shared:
        room.share_memory_()  # type: ignore[no-untyped-call]
    return room.permute(0, 3, 1, 2)


def _reduced(box: CropBox, reduction: int, size: tuple[int, int]) -> CropBox:
    """A box in the pixels of the reduced picture, to the nearest one."""
    if reduction == 1:
        return box
    left, upper, right, lower = (round(place / reduction) for place in box)
    return CropBox(left, upper, min(right, size[0]), min(lower, size[1]))


def _fast_crop(image: Image.Image, box: CropBox, side: int) -> Tensor:
    """Crop, then resize (bilinear, antialiased): uint8 [3, side, side]."""
    # np.array copies, as torch wants to own its memory; [height, width, 3] -> [1, 3, height, width]
    pixels = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(
        pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )[0]
