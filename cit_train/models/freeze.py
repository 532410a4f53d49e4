"""Which parameters are trained, and in which mode each part runs (docs/method.md, "Inner loop").

The vision tower has a frozen part and, in MoCo's case, a trainable head. Frozen parts stay in eval
mode. Trained parts are in train mode: their BatchNorm normalises with the statistics of one lane,
and its running statistics are those of lane 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, VisionTextDualEncoderModel

from cit_curate.errors import ConfigError
from cit_train.config import ModelConfig

_BatchNorm = nn.modules.batchnorm._BatchNorm


def freeze(model: VisionTextDualEncoderModel, config: ModelConfig) -> None:
    """Require gradients for the configured parts, the projections and the logit scale.

    Raises:
        ConfigError: The text tower has no pooler to train.
    """
    model.requires_grad_(True)
    vision, text = model.vision_model, model.text_model
    head = vision_head(vision)
    if config.train_vision != "all":
        vision.requires_grad_(False)
    if config.train_vision == "head" and head is not None:
        head.requires_grad_(True)
    if config.train_text == "pool":
        pooler = getattr(text, "pooler", None)
        if not isinstance(pooler, nn.Module):
            raise ConfigError(
                f"--train-text pool: a {text.config.model_type} text tower has no pooler; "
                "use --train-text all, or a tower with --pooling pooler"
            )
        text.requires_grad_(False)
        pooler.requires_grad_(True)


def set_train_mode(model: VisionTextDualEncoderModel) -> None:
    """Put the trained parts, and the text tower for its dropout, in train mode; others in eval."""
    model.train()
    vision, head = model.vision_model, vision_head(model.vision_model)
    vision.train(trains_vision_tower(model))
    if head is not None:
        head.train(any(parameter.requires_grad for parameter in head.parameters()))


def trains_vision_tower(model: VisionTextDualEncoderModel) -> bool:
    """Whether any of the vision tower below its head is trained."""
    head = vision_head(model.vision_model)
    in_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    return any(
        parameter.requires_grad and id(parameter) not in in_head
        for parameter in model.vision_model.parameters()
    )


def vision_head(vision: PreTrainedModel) -> nn.Module | None:
    """The head above the tower's frozen part; None in towers without one."""
    return vision.head if getattr(vision, "has_trainable_head", False) else None


def frozen_features(vision: PreTrainedModel, pixel_values: Tensor) -> Tensor:
    """The output of the tower below its head: float [batch, width].

    Args:
        vision: The vision tower.
        pixel_values: float [batch, 3, height, width], normalised.
    """
    if vision_head(vision) is not None:
        features: Tensor = vision.frozen_features(pixel_values)
        return features
    pooled: Tensor = vision(pixel_values=pixel_values).pooler_output
    return pooled.flatten(1)


def with_head(vision: PreTrainedModel, features: Tensor) -> Tensor:
    """The tower's pooled output from `frozen_features`: float [batch, pooled width]."""
    head = vision_head(vision)
    if head is None:
        return features
    pooled: Tensor = head(features)
    return pooled


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a batch must stay whole, because BatchNorm in train mode uses all of it."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


@contextmanager
def running_statistics(module: nn.Module, *, update: bool) -> Iterator[None]:
    """A block in which BatchNorm in train mode updates its running statistics only if `update`."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    tracking = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            # In eval mode BatchNorm needs its statistics, and does not update them.
            if layer.training:
                layer.track_running_stats = layer.track_running_stats and update
        yield
    finally:
        for layer, tracks in zip(layers, tracking, strict=True):
            layer.track_running_stats = tracks


def trainable_parameters(model: nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that gradients reach, in the order of the model."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
