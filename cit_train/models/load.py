"""Loading a dual encoder, ours or the original's, with its tokenizer."""

from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedTokenizerBase, VisionTextDualEncoderModel
from transformers.utils import logging as transformers_logging

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError
from cit_curate.text_encoder.checks import check_positions
from cit_curate.text_encoder.load import resolve_model_name
from cit_curate.text_encoder.reading_weights import reading_weights
from cit_curate.text_encoder.tokenizer import num_ids, open_tokenizer
from cit_train.models import PooledTextModel
from cit_train.models.released import is_released, load_released, open_released
from cit_train.models.strict import refuse_differences

__all__ = [
    "ORIGINAL_TOKENIZER",
    "checkpoint_folder",
    "find_tokenizer",
    "is_foreign",
    "load_dual_encoder",
]

# Importing this class registers our model types with `AutoModel`.
_REGISTERED = (PooledTextModel,)

# The original trained with it, and published no tokenizer with its weights.
ORIGINAL_TOKENIZER = TextTowerConfig.text_encoder
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def load_dual_encoder(
    path: Path,
    *,
    device: str = "cpu",
    tokenizer: str | None = None,
    max_text_length: int | None = None,
) -> tuple[VisionTextDualEncoderModel, PreTrainedTokenizerBase]:
    """A saved dual encoder in eval mode, and its tokenizer.

    Args:
        path: A Hugging Face directory, a run folder, or a checkpoint of the original: a directory
            with pytorch_model.bin, its `.tar`, or a training checkpoint (`.pth`).
        device: The device of the weights.
        tokenizer: The directory or hub id of a tokenizer; None = the one beside the weights, else
            the original's if a hub's cache on this machine has it.
        max_text_length: The tokens of the longest text to come; None = not known.

    Raises:
        ConfigError: There is no model or tokenizer, the model is not a dual encoder, its tensors
            do not match its config, or its text tower has too few positions.
        DamagedError: The weights are truncated, or a pickle with more than tensors.
    """
    folder: Path | None
    if is_foreign(path):
        model = load_released(open_released(path))
        folder = path if path.is_dir() else None
    else:
        folder = checkpoint_folder(path)
        model = _load_folder(folder)
    vocabulary = model.config.text_config.vocab_size
    own_tokenizer = find_tokenizer(tokenizer, folder, vocabulary=vocabulary)
    if own_tokenizer is None:
        raise ConfigError(
            f"{path} has no tokenizer; give one with --tokenizer, a directory or a hub id such as "
            f"{ORIGINAL_TOKENIZER}"
        )
    if max_text_length is not None:
        check_positions(model.text_model, max_text_length, subject=str(path))
    model.vision_model.to(memory_format=torch.channels_last)
    return model.to(device).eval(), own_tokenizer


def find_tokenizer(
    name: str | None, folder: Path | None, *, vocabulary: int
) -> PreTrainedTokenizerBase | None:
    """The requested tokenizer, else the model's own, else the original's if it is cached.

    A hub is contacted only for a requested name.

    Args:
        name: The directory or hub id of the requested tokenizer; None = no request.
        folder: The folder of the model, which may have a tokenizer.
        vocabulary: The vocabulary size of the text tower.

    Returns:
        The tokenizer; None when there is none of the three.

    Raises:
        ConfigError: The requested or own tokenizer cannot be loaded, or the tokenizer has more
            tokens than the text tower.
    """
    own = folder is not None and any((folder / file).is_file() for file in TOKENIZER_FILES)
    source = resolve_model_name(name) if name else str(folder) if own else ORIGINAL_TOKENIZER
    optional = not name and not own
    try:
        tokenizer = open_tokenizer(source, cached_only=optional)
    except (OSError, ValueError) as error:
        if optional:
            return None
        reason = str(error).splitlines()[0]
        subject = f"--tokenizer {name}" if name else f"the tokenizer {source}"
        raise ConfigError(f"{subject} cannot be loaded: {reason}") from error
    if num_ids(tokenizer) > vocabulary:
        raise ConfigError(
            f"the tokenizer {source} has {num_ids(tokenizer):,} tokens, the text tower "
            f"{vocabulary:,}; "
            "give the one that the model was trained with (--tokenizer)"
        )
    return tokenizer


def checkpoint_folder(path: Path) -> Path:
    """The folder of a model: the path itself, or the best, else the last checkpoint of a run.

    Raises:
        ConfigError: The path has no model.
    """
    candidates = (path, path / "checkpoints" / "best", path / "checkpoints" / "last")
    for folder in candidates:
        if (folder / "model.safetensors").is_file():
            return folder
    if not path.exists():
        raise ConfigError(
            f"there is no {path}; give a run, a checkpoint's folder or file, or a model of the "
            "hub as hf://org/name"
        )
    raise ConfigError(
        f"{path} holds no model: neither model.safetensors, pytorch_model.bin nor a run's "
        "checkpoints/best; train one with `cit train`"
    )


def is_foreign(path: Path) -> bool:
    """Whether the path is a checkpoint of the original, which has no tokenizer."""
    return is_released(path) and not (path / "model.safetensors").is_file()


def _load_folder(folder: Path) -> VisionTextDualEncoderModel:
    transformers_logging.disable_progress_bar()
    try:
        with reading_weights(str(folder)):
            model, info = AutoModel.from_pretrained(
                folder, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    if not isinstance(model, VisionTextDualEncoderModel):
        raise ConfigError(f"{folder} is a {model.config.model_type}, not a dual encoder")
    refuse_differences(info, str(folder))
    return model
