"""Pictures to pixels: the training view, the evaluation view, and their normalisation.

Views are uint8, so that they are cached and sent to a device at a quarter of the size; the
normalisation runs on whole batches, where the model is.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = [
    "EVAL_RESIZE_RATIO",
    "CropBox",
    "ImageStatistics",
    "Normalizer",
    "eval_view",
    "image_statistics",
    "random_resized_crop",
    "resized_crop",
    "train_view",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_SIDE = 224
# Evaluation resizes to 256 for a view of 224 (docs/method.md, "Inner loop").
EVAL_RESIZE_RATIO = 256 / 224
# Of a picture longer than this, only what the centre crop needs is resized: a strip of 1 x 10,000
# pixels would become 256 x 2,560,000.
MAX_ASPECT = 16

_CROP_TRIES = 10


class CropBox(NamedTuple):
    """A part of a picture in whole pixels, as PIL takes it; right and lower are outside."""

    left: int
    upper: int
    right: int
    lower: int


class ImageStatistics(NamedTuple):
    """What a vision tower expects: per-channel mean and deviation of values in 0..1, and a side."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int


def random_resized_crop(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """A random box of random area and shape, distributed as torchvision's RandomResizedCrop.

    Ten tries at an area uniform in `scale` and a ratio log-uniform in `ratio`; when none fits into
    the picture, the largest centred box with a ratio inside the bounds.

    Args:
        size: Width and height of the picture, at least 1 each.
        rng: Drawn from four times for each try that fits, twice for one that does not.
        scale: Bounds of the box's share of the area.
        ratio: Bounds of width / height.
    """
    width, height = size
    for _ in range(_CROP_TRIES):
        target_area = width * height * rng.uniform(*scale)
        target_ratio = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width = round(math.sqrt(target_area * target_ratio))
        box_height = round(math.sqrt(target_area / target_ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            upper = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return CropBox(left, upper, left + box_width, upper + box_height)
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    left, upper = (width - box_width) // 2, (height - box_height) // 2
    return CropBox(left, upper, left + box_width, upper + box_height)


def train_view(image: Image.Image, rng: np.random.Generator, *, side: int = DEFAULT_SIDE) -> Tensor:
    """A random part of a picture, resized (bilinear, antialiased) to a square; never flipped.

    Crop and resize are one step, so the pixels just outside the box take part in its border.

    Args:
        image: RGB.
        rng: Chooses the part.
        side: In pixels.

    Returns:
        uint8 [3, side, side], channels last in memory.
    """
    return resized_crop(image, random_resized_crop(image.size, rng), side=side)


def resized_crop(image: Image.Image, box: CropBox, *, side: int) -> Tensor:
    """A part of a picture, resized (bilinear, antialiased) to a square.

    Args:
        image: RGB.
        box: Which part.
        side: In pixels.

    Returns:
        uint8 [3, side, side], channels last in memory.
    """
    return _pixels(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def eval_view(image: Image.Image, *, side: int = DEFAULT_SIDE, resize: int | None = None) -> Tensor:
    """The centre of a picture whose shorter side was resized (bilinear, antialiased).

    Equal to torchvision's Resize(resize) and CenterCrop(side) on a PIL picture.

    Args:
        image: RGB.
        side: Of the view, in pixels.
        resize: Length of the shorter side before the crop; None = 256/224 of `side`.

    Returns:
        uint8 [3, side, side], channels last in memory.

    Raises:
        ValueError: `resize` is below `side`.
    """
    resize = round(side * EVAL_RESIZE_RATIO) if resize is None else resize
    if resize < side:
        raise ValueError(f"resize is {resize} pixels; it must not be below the view's {side}")
    image = _cut_to_aspect(image)
    shorter = min(image.size)
    width, height = (int(resize * length / shorter) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, upper = round((width - side) / 2), round((height - side) / 2)
    return _pixels(resized.crop((left, upper, left + side, upper + side)))


@dataclass(frozen=True)
class Normalizer:
    """Views to what a vision tower takes: (pixel / 255 − mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise a batch, on the device where it is.

        Args:
            pixels: uint8 [batch, 3, side, side].

        Returns:
            float32 [batch, 3, side, side], in the memory format given.
        """
        # [3, 1, 1] each
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float32, device=pixels.device)[:, None, None]
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def image_statistics(vision_config: Any) -> ImageStatistics:
    """Mean, deviation and side of a vision tower's input, from its Hugging Face config.

    A timm tower says them itself (`pretrained_cfg`). For any other the mean and deviation are those
    of the image processor that it came with (`load_vision_tower` notes them), or else ImageNet's,
    but for AugReg's 0.5 (docs/method.md, "Inner loop"), and the side is its `image_size`, or 224.

    Args:
        vision_config: The dual encoder's `config.vision_config`.
    """
    if vision_config.model_type == "timm_wrapper":
        own: dict[str, Any] = getattr(vision_config, "pretrained_cfg", None) or {}
        return ImageStatistics(
            tuple(own.get("mean", IMAGENET_MEAN)),
            tuple(own.get("std", IMAGENET_STD)),
            int(own.get("input_size", (3, DEFAULT_SIDE, DEFAULT_SIDE))[-1]),
        )
    side = getattr(vision_config, "image_size", None) or DEFAULT_SIDE
    side = int(side[-1]) if isinstance(side, (list, tuple)) else int(side)
    if vision_config.model_type == "augreg":
        return ImageStatistics((0.5,) * 3, (0.5,) * 3, side)
    mean = getattr(vision_config, "image_mean", IMAGENET_MEAN)
    std = getattr(vision_config, "image_std", IMAGENET_STD)
    return ImageStatistics(tuple(mean), tuple(std), side)


def _cut_to_aspect(image: Image.Image) -> Image.Image:
    """The middle of a picture whose longer side is over MAX_ASPECT times the shorter."""
    width, height = image.size
    limit = MAX_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    # The same parity as before, so that the middle stays where it was.
    cut_width = width if width <= limit else limit - (width - limit) % 2
    cut_height = height if height <= limit else limit - (height - limit) % 2
    left, upper = (width - cut_width) // 2, (height - cut_height) // 2
    return image.crop((left, upper, left + cut_width, upper + cut_height))


def _pixels(image: Image.Image) -> Tensor:
    # [side, side, 3] -> [3, side, side]; np.array copies, since torch wants to own its memory
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
