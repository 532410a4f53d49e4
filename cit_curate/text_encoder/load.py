"""Text towers and tokenizers loaded by name."""

import hashlib
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError
from cit_curate.text_encoder.dual_encoder_text import dual_encoder_folder, load_text_side
from cit_curate.text_encoder.hub import hub_folder
from cit_curate.text_encoder.packaged import PACKAGE_PREFIX, packaged_folder
from cit_curate.text_encoder.pooled_text import PooledTextConfig, PooledTextModel
from cit_curate.text_encoder.reading_weights import reading_weights
from cit_curate.text_encoder.tokenizer import LENGTH_STEP


def load_text_tower(config: TextTowerConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a text tower, with the pooling of the config, and its tokenizer.

    A run or a checkpoint's folder stands for the text tower of its dual encoder.

    Raises:
        ConfigError: The model or its tokenizer cannot be loaded, or has no pooler output.
        DamagedError: The weights are cut, or are a pickle of more than tensors.
    """
    name = config.text_encoder
    tokenizer = load_tokenizer(name)
    resolved = resolve_model_name(name)
    dual = dual_encoder_folder(Path(resolved))
    folder = str(dual or resolved)
    try:
        if dual is not None:
            tower, _ = load_text_side(dual)
        else:
            with reading_weights(f"--text-encoder {name}"):
                tower = AutoModel.from_pretrained(
                    folder, trust_remote_code=False, dtype=torch.float32, attn_implementation="sdpa"
                )
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error
    if isinstance(tower, PooledTextModel):
        return tower, tokenizer
    if config.pooling != "pooler":
        # Without the path it was loaded from, which does not belong in a saved model.
        tower_config = tower.config.to_dict() | {"_name_or_path": ""}
        pooled = PooledTextConfig(tower_config=tower_config, pooling=config.pooling)
        return PooledTextModel(pooled, tower), tokenizer
    with torch.inference_mode():
        probe = tower(input_ids=torch.zeros((1, LENGTH_STEP), dtype=torch.long))
    if getattr(probe, "pooler_output", None) is None:
        raise ConfigError(
            f"--text-encoder {name} has no pooler output; choose --pooling mean or --pooling cls"
        )
    return tower, tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a text tower.

    Raises:
        ConfigError: The tokenizer cannot be loaded, or is not a fast one.
    """
    resolved = resolve_model_name(name)
    folder = str(dual_encoder_folder(Path(resolved)) or resolved)
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error
    if not tokenizer.is_fast:
        raise ConfigError(f"--text-encoder {name} has no fast tokenizer (tokenizer.json)")
    return tokenizer


def _cannot_load(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"--text-encoder {name} cannot be loaded: {str(error).splitlines()[0]} "
        "Give a directory with config.json, tokenizer.json and model.safetensors, "
        "or package:minilm, which needs no network"
    )


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
