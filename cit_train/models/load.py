"""Load a dual encoder that training saved, with its tokenizer."""

from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderModel,
)
from transformers.utils import logging as transformers_logging

from cit_curate.errors import ConfigError
from cit_train.models import PooledTextModel

__all__ = ["checkpoint_folder", "load_dual_encoder"]

# Importing it has registered our model types with `AutoModel`.
_REGISTERED = (PooledTextModel,)


def load_dual_encoder(
    path: Path, *, device: str = "cpu"
) -> tuple[VisionTextDualEncoderModel, PreTrainedTokenizerBase]:
    """A saved dual encoder in eval mode, and its tokenizer.

    Args:
        path: A Hugging Face directory, or a run folder.
        device: Where its weights go.

    Raises:
        ConfigError: There is no model, or it is not a dual encoder.
    """
    folder = checkpoint_folder(path)
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if not isinstance(model, VisionTextDualEncoderModel):
        raise ConfigError(f"{folder} is a {model.config.model_type}, not a dual encoder")
    model.vision_model.to(memory_format=torch.channels_last)
    return model.to(device).eval(), tokenizer


def checkpoint_folder(path: Path) -> Path:
    """The folder of a model: the path itself, or the best, else the last checkpoint of a run.

    Raises:
        ConfigError: There is neither.
    """
    candidates = (path, path / "checkpoints" / "best", path / "checkpoints" / "last")
    for folder in candidates:
        if (folder / "model.safetensors").is_file():
            return folder
    raise ConfigError(
        f"{path} holds no model: neither model.safetensors nor a run's checkpoints/best; "
        "train one with `cit train`"
    )
