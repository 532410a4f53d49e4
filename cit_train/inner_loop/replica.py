"""The towers of one rank, with gradients averaged over the ranks."""

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
    """The towers, inside DistributedDataParallel when there are several ranks."""

    def __init__(self, towers: LaneTowers, world: World) -> None:
        self._towers = towers
        self._parallel: DistributedDataParallel | None = None
        if world.size > 1:
            device = towers.model.logit_scale.device
            with warnings.catch_warnings():
                # torch 2.14 renames the argument; older versions do not know the new name.
                warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
                self._parallel = DistributedDataParallel(
                    _Reduced(towers),
                    device_ids=[device] if device.type == "cuda" else None,
                    # BatchNorm's running statistics are those of lane 0; rank 0 saves them.
                    broadcast_buffers=False,
                )

    def __call__(self, batches: Sequence[LaneBatch], update: int, part: int) -> Features:
        """`LaneTowers.forward`, whose backward pass ends with the averaged gradient."""
        features: Features = (self._parallel or self._towers)(batches, update, part)
        return features

    def without_averaging(self) -> AbstractContextManager[Any]:
        """A context in which backward passes leave this rank's own gradient, averaged later."""
        return self._parallel.no_sync() if self._parallel is not None else contextlib.nullcontext()

    def average(self) -> None:
        """Average the existing gradients, when no backward pass through this replica did."""
        if self._parallel is not None:
            self._parallel(None, 0, 0).backward()


class _Reduced(nn.Module):
    """The towers; without batches, a zero that depends on every parameter."""

    def __init__(self, towers: LaneTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(
        self, batches: Sequence[LaneBatch] | None, update: int, part: int
    ) -> Features | Tensor:
        """`LaneTowers.forward`, or the zero."""
        if batches is not None:
            features: Features = self.towers(batches, update, part)
            return features
        zeros = [0.0 * parameter.sum() for parameter in trainable_parameters(self.towers)]
        return torch.stack(zeros).sum()
