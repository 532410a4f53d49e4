"""Text towers and tokenizers loaded by name."""

import hashlib
import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError
from cit_curate.text_encoder.checks import check_text_tower
from cit_curate.text_encoder.dual_encoder_text import dual_encoder_folder, load_text_side
from cit_curate.text_encoder.hub import hub_folder
from cit_curate.text_encoder.packaged import PACKAGE_PREFIX, packaged_folder
from cit_curate.text_encoder.pooled_text import pooled_tower
from cit_curate.text_encoder.text_models import cannot_load, load_text_model, read_text_config
from cit_curate.text_encoder.tokenizer import open_tokenizer

logger = logging.getLogger(__name__)


def load_text_tower(config: TextTowerConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a text tower, with the pooling of the config, and its tokenizer.

    A run or a checkpoint's folder stands for the text tower of its dual encoder, and a whole CLIP
    or SigLIP for its text half. The tower is checked with a few texts (`check_text_tower`).

    Raises:
        ConfigError: The model or its tokenizer cannot be loaded, weights are missing, it has no
            pooler output, or it fails a check.
        DamagedError: The weights are cut, or are a pickle of more than tensors.
    """
    name, pooling = config.text_encoder, config.pooling
    resolved = Path(resolve_model_name(name))
    dual = dual_encoder_folder(resolved)
    if dual is None:
        read_text_config(resolved, name)  # a family is refused by name before its tokenizer is
    tokenizer = load_tokenizer(name)
    if dual is not None:
        tower, _ = load_text_side(dual)
    else:
        tower = load_text_model(resolved, name, pooling=pooling)
    tower = pooled_tower(tower, pooling, tokenizer)
    check_text_tower(
        tower,
        tokenizer,
        max_text_length=config.max_text_length,
        subject=f"--text-encoder {name}",
    )
    if tokenizer.model_max_length < config.max_text_length:
        logger.warning(
            "--text-encoder %s was made for texts of %d tokens (model_max_length), fewer than "
            "--max-text-length %d",
            name,
            tokenizer.model_max_length,
            config.max_text_length,
        )
    return tower, tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a text tower; it has a pad token.

    Raises:
        ConfigError: The tokenizer cannot be loaded, or is not a fast one.
        DamagedError: It is cut.
    """
    resolved = resolve_model_name(name)
    folder = str(dual_encoder_folder(Path(resolved)) or resolved)
    try:
        tokenizer = open_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from error
    if not tokenizer.is_fast:
        raise ConfigError(f"--text-encoder {name} has no fast tokenizer (tokenizer.json)")
    return tokenizer


def resolve_model_name(name: str) -> str:
    """The local directory of a model: `package:NAME`, a directory, `hf://org/name` or a hub id.

    Raises:
        ConfigError: The package is not installed, there is no such directory, or the hub's model
            is not available.
        ResourceError: A download broke off.
    """
    if name.startswith(PACKAGE_PREFIX):
        return str(packaged_folder(name.removeprefix(PACKAGE_PREFIX)))
    expanded = Path(name).expanduser()
    if expanded.is_dir():
        return str(expanded)
    if name.startswith((".", "/", "~")):  # a path, never an id of the hub
        raise ConfigError(f"there is no model directory {name}")
    return str(hub_folder(name))


def weights_sha256(tower: torch.nn.Module) -> str:
    """Hex SHA-256 of a model's weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        flat = weight.detach().contiguous().cpu().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
