"""The towers of one rank among the equal ones of the others: gradients are averaged over ranks."""

import contextlib
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cit_train.inner_loop.lane_towers import LaneTowers
from cit_train.models.freeze import trainable_parameters
from cit_train.ranks.world import World
from cit_train.streaming.batches import LaneBatch

Features = tuple[Tensor, Tensor, Tensor]


class Replica:
    """The towers as they are, or within DistributedDataParallel when there are several ranks."""

    def __init__(self, towers: LaneTowers, world: World) -> None:
        self._towers = towers
        self._parallel: DistributedDataParallel | None = None
        if world.size > 1:
            device = towers.model.logit_scale.device
            with warnings.catch_warnings():
                # torch 2.14 gives the argument another name, which older versions do not know.
                warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
                self._parallel = DistributedDataParallel(
                    _Reduced(towers),
                    device_ids=[device] if device.type == "cuda" else None,
                    # BatchNorm's running statistics are those of lane 0; rank 0 saves them.
                    broadcast_buffers=False,
                )

    def __call__(self, batches: Sequence[LaneBatch], update: int, part: int) -> Features:
        """As `LaneTowers.forward`; a backward pass from it ends with the averaged gradient."""
        features: Features = (self._parallel or self._towers)(batches, update, part)
        return features

    def alone(self) -> AbstractContextManager[Any]:
        """Within it a backward pass leaves the gradient of this rank, to be averaged later."""
        return self._parallel.no_sync() if self._parallel is not None else contextlib.nullcontext()

    def average(self) -> None:
        """Average the gradients that are there, when no backward pass through the towers did."""
        if self._parallel is not None:
            self._parallel(None, 0, 0).backward()


class _Reduced(nn.Module):
    """The towers; without batches, a zero that every parameter has a part in."""

    def __init__(self, towers: LaneTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(
        self, batches: Sequence[LaneBatch] | None, update: int, part: int
    ) -> Features | Tensor:
        """As `LaneTowers.forward`."""
        if batches is not None:
            features: Features = self.towers(batches, update, part)
            return features
        zeros = [0.0 * parameter.sum() for parameter in trainable_parameters(self.towers)]
        return torch.stack(zeros).sum()
