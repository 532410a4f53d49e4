"""From an image's bytes to random crops, with a plain and a faster method."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cit_curate.errors import DamagedError
from cit_curate.images.read import ImageRejected, OpenedImage
from cit_train.transforms import CropBox, random_resized_crop, resized_crop

# The scales at which a JPEG can be decoded by cutting its cosine transform: 1/8, 1/4, 1/2.
_REDUCTIONS = (8, 4, 2)


@dataclass(frozen=True, kw_only=True)
class ViewMaker:
    """Makes training views: everything a view depends on besides the bytes and random numbers.

    Attributes:
        side: The side of a view, in pixels.
        max_pixels: The most pixels of an image; larger ones are refused by their header.
        fast: Decode a JPEG at 1/2, 1/4 or 1/8 where its crop still has the pixels of the view, and
            resize only the crop, with torch's vector instructions. The same boxes are drawn, then
            rounded to pixels of the reduced picture. At edges a reduced view differs visibly from a
            plain one (docs/performance.md, "Images").
    """

    side: int
    max_pixels: int
    fast: bool = False

    @property
    def name(self) -> str:
        """A name that identifies the settings of these views."""
        return f"side{self.side}-{self.max_pixels}{'-fast' if self.fast else ''}"

    def __call__(self, data: bytes, rngs: Sequence[np.random.Generator], out: Tensor) -> None:
        """Make one view of an image per random generator; the image is decoded once.

        Args:
            data: The bytes of an image that was checked when it was written.
            rngs: The random generators, each of which chooses a crop.
            out: uint8 [views, 3, side, side], where the views are written.

        Raises:
            DamagedError: The image no longer decodes.
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
                # Straight to its place: [side, side, 3], the memory layout of a view
                pixels = view.permute(1, 2, 0).numpy()
                pixels[:] = np.asarray(resized_crop(image, box, side=self.side))

    def _reduction(self, boxes: Sequence[CropBox]) -> int:
        shortest = min(
            min(box.right - box.left, box.lower - box.upper) // self.side for box in boxes
        )
        return next((reduction for reduction in _REDUCTIONS if reduction <= shortest), 1)


def empty_views(num_views: int, side: int) -> Tensor:
    """An uninitialised buffer for views: uint8 [views, 3, side, side], channels last like pictures.

    Args:
        num_views: The number of views.
        side: The side of a view, in pixels.
    """
    # [views, side, side, 3] -> [views, 3, side, side]
    return torch.empty((num_views, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def _reduced(box: CropBox, reduction: int, size: tuple[int, int]) -> CropBox:
    """A box rounded to pixels of the reduced picture."""
    if reduction == 1:
        return box
    left, upper, right, lower = (round(edge / reduction) for edge in box)
    return CropBox(left, upper, min(right, size[0]), min(lower, size[1]))


def _fast_crop(image: Image.Image, box: CropBox, side: int) -> Tensor:
    """A resized crop (bilinear, antialiased): uint8 [3, side, side]."""
    # np.array copies, so that torch owns the memory; [height, width, 3] -> [1, 3, height, width]
    pixels = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(
        pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )[0]
