"""Batches of drawn pictures, and what a trainer makes of them, without dropout."""

import numpy as np
import torch
from tiny import COLOURS, SHAPES, picture

from cit_curate.images.read import read_image
from cit_train.inner_loop.trainer import Trainer
from cit_train.streaming.batches import LaneBatch
from cit_train.transforms import eval_view


def lane_batch(lane: int, start: int, size: int = 8) -> LaneBatch:
    """Pictures and captions without chance in them."""
    rng = np.random.default_rng((lane, start))
    images, captions = [], []
    for number in range(size):
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        images.append(picture(colour, shape, number))
        captions.append(f"a {colour} {shape}")
    views = torch.stack([eval_view(read_image(image), side=32) for image in images])
    keys = [f"{lane}-{start + number}_title" for number in range(size)]
    return LaneBatch(0, lane, start, captions, keys, images, views)


def without_dropout(trainer: Trainer) -> None:
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}
