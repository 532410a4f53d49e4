"""Image transforms: the training view, the evaluation view, and their normalisation.

Views are uint8, so that they are cached and sent to a device at a quarter of the size. The
normalisation runs on whole batches, on the device of the model.
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
# Of an image with a larger aspect ratio, only what the centre crop needs is resized: a strip of
# 1 x 10,000 pixels would become 256 x 2,560,000.
MAX_ASPECT = 16

_CROP_TRIES = 10


class CropBox(NamedTuple):
    """A box within an image in whole pixels, as in PIL; `right` and `lower` are exclusive."""

    left: int
    upper: int
    right: int
    lower: int


class ImageStatistics(NamedTuple):
    """The input of a vision tower: per-channel mean and deviation of values in 0..1, and side."""

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
    """A box of random area and shape, distributed as in torchvision's RandomResizedCrop.

    Up to ten boxes are drawn, with an area uniform in `scale` and a ratio log-uniform in `ratio`.
    If none fits into the image, the largest centred box with a ratio inside the bounds is taken.

    Args:
        size: The width and height of the image in pixels, at least 1 each.
        rng: The generator; a box that fits draws four numbers, and one that does not draws two.
        scale: The bounds of the box's share of the area.
        ratio: The bounds of width / height.
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
    """A random crop of an image, resized (bilinear, antialiased) to a square; never flipped.

    Crop and resize are one step, so pixels just outside the box contribute to its border.

    Args:
        image: An RGB image.
        rng: The generator of the crop.
        side: The side of the view in pixels.

    Returns:
        uint8 [3, side, side], channels last in memory.
    """
    return _pixels(resized_crop(image, random_resized_crop(image.size, rng), side=side))


def resized_crop(image: Image.Image, box: CropBox, *, side: int) -> Image.Image:
    """A crop of an image, resized (bilinear, antialiased) to a square.

    Args:
        image: An RGB image.
        box: The crop.
        side: The side of the square in pixels.
    """
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def eval_view(image: Image.Image, *, side: int = DEFAULT_SIDE, resize: int | None = None) -> Tensor:
    """The centre crop of an image whose shorter side is resized first (bilinear, antialiased).

    Equal to torchvision's Resize(resize) and CenterCrop(side) on a PIL image.

    Args:
        image: An RGB image.
        side: The side of the view in pixels.
        resize: The length of the shorter side before the crop; None = 256/224 of `side`.

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
    """The normalisation of views for a vision tower: (pixel / 255 − mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise a batch on its device.

        Args:
            pixels: uint8 [batch, 3, side, side].

        Returns:
            float32 [batch, 3, side, side], in the memory format of `pixels`.
        """
        # [3, 1, 1] each
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float32, device=pixels.device)[:, None, None]
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def image_statistics(vision_config: Any) -> ImageStatistics:
    """The mean, deviation and side of a vision tower's input, from its Hugging Face config.

    A timm tower has them in `pretrained_cfg`. For another tower the mean and deviation are those of
    its image processor (`load_vision_tower` copies them into the config), or else ImageNet's;
    AugReg's are 0.5 (docs/method.md, "Inner loop"). Its side is `image_size`, or else 224.

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
    """The middle of an image whose longer side is over MAX_ASPECT times the shorter."""
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
