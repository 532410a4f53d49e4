"""The frozen part of a vision tower as a function from pixels to features."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cit_curate.errors import ConfigError
from cit_train.config import VisionPrecision
from cit_train.models.folded import folded_copy
from cit_train.models.freeze import frozen_features
from cit_train.models.vision_engine import OpenVinoTower
from cit_train.transforms import Normalizer

# Rows of a forward pass on a CPU. EfficientNet-lite0, channels last, 2 cores: 8 rows give 110
# crops/s, 4 give 82, 32 give 64.
CPU_ROWS = 8
GPU_ROWS = 256

_logger = logging.getLogger(__name__)


class PooledVision:
    """A vision tower below its head, without gradient, in passes of a fixed number of rows.

    The last pass is padded, so that the feature of an image does not depend on the other images.

    Attributes:
        device: The device of the tower.
        rows: The rows of every pass.
        is_float32: Whether it computes in float32.
        name: The device, engine and precision, on which the last bits of a feature depend.
    """

    def __init__(
        self,
        tower: PreTrainedModel,
        normalizer: Normalizer,
        device: torch.device,
        *,
        autocast: torch.dtype | None = None,
        engine: str | None = None,
        falls_back: bool = False,
    ) -> None:
        """Take a tower, whose weights stay shared.

        Args:
            tower: The vision tower, on the device.
            normalizer: Its normalisation.
            device: The device of the tower.
            autocast: The type of mixed precision; None = float32.
            engine: See `choose_engine`; it runs a copy of the weights, which never change. None =
                the tower itself, whose weights may change.
            falls_back: Whether PyTorch runs a tower that the engine cannot run.
        """
        self.device = device
        self.rows = CPU_ROWS if device.type == "cpu" else GPU_ROWS
        self.is_float32 = autocast is None
        precision = None if autocast is None else str(autocast).removeprefix("torch.")
        self.name = "-".join(filter(None, (device.type, engine, precision)))
        self._tower = tower
        self._normalizer = normalizer
        self._autocast = autocast
        self._engine = engine
        self._falls_back = falls_back
        # Made for the first views: with all features in the cache, none is needed.
        self._forward: Callable[[Tensor], Tensor] | None = None

    def limit_rows(self, batch_size: int) -> None:
        """Fill up a GPU's passes to `batch_size` rows only, where all batches have that size."""
        if self.device.type != "cpu":
            self.rows = min(self.rows, batch_size)

    def __call__(self, views: Tensor) -> Tensor:
        """The features of crops: the tower's pooled output, or the input of its trainable head.

        Args:
            views: uint8 [views, 3, side, side].

        Returns:
            float32 [views, dim], on the CPU.
        """
        return self.on_device(views).cpu()

    @torch.no_grad()
    def on_device(self, views: Tensor) -> Tensor:
        """The features on the tower's device: float32 [views, dim]."""
        pooled = []
        for start in range(0, len(views), self.rows):
            block = views[start : start + self.rows]
            padded = block
            if len(block) < self.rows:
                padded = torch.zeros((self.rows, *block.shape[1:]), dtype=torch.uint8)
                padded[: len(block)] = block
            if self._forward is None:
                self._forward = self._prepared(padded)
            pooled.append(self._forward(padded)[: len(block)])
        return torch.cat(pooled)

    def pixels(self, views: Tensor) -> Tensor:
        """The tower's input: float32 [views, 3, side, side], normalised, channels last."""
        pixels: Tensor = self._normalizer(views.to(self.device, non_blocking=True))
        return pixels.contiguous(memory_format=torch.channels_last)

    def _prepared(self, views: Tensor) -> Callable[[Tensor], Tensor]:
        """The forward pass of the configured engine, for views of the shape of these."""
        if self._engine == "openvino":
            precision: VisionPrecision = "float32" if self._autocast is None else "bfloat16"
            try:
                return OpenVinoTower(self._tower, self._normalizer, views, precision=precision)
            except ConfigError as error:
                if not self._falls_back:
                    raise
                _logger.info("%s; PyTorch runs it", error)
        tower = self._tower
        if self._engine is not None and self.device.type == "cpu":
            tower = folded_copy(tower, self.pixels(views))

        def forward(views: Tensor) -> Tensor:
            pixels = self.pixels(views)
            is_mixed = self._autocast is not None
            with torch.autocast(self.device.type, self._autocast, enabled=is_mixed):
                return frozen_features(tower, pixels).float()

        return forward
