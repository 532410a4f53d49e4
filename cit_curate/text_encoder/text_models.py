"""Text models of transformers: the class of each family, and its weights, loaded strictly.

`AutoModel` does not know every text tower: it makes the whole of a T5, and no SigLIP text model at
all. It also fills missing weights with random numbers. Here each family has its class, and what
would be random, or is no text tower, is refused by name.
"""

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from cit_curate.errors import ConfigError, first_line
from cit_curate.storage.durable import read_json
from cit_curate.text_encoder.reading_weights import reading_weights

logger = logging.getLogger(__name__)

# Text towers that `AutoModel` does not make by themselves.
_CLASSES = {
    "align_text_model": "AlignTextModel",
    "chinese_clip_text_model": "ChineseCLIPTextModel",
    "longt5": "LongT5EncoderModel",
    "metaclip_2_text_model": "MetaClip2TextModel",
    "mt5": "MT5EncoderModel",
    "siglip2_text_model": "Siglip2TextModel",
    "siglip_text_model": "SiglipTextModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
_INSTEAD = (
    "give an encoder of texts, such as a BERT, RoBERTa, MPNet, DeBERTa, T5, CLIP or SigLIP, or "
    "package:minilm, which needs no network"
)
# Buffers that a model computes, and that some checkpoints store.
_COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids)$")
_POOLER = re.compile(r"(^|\.)(pooler|head)\.")
_SHOWN_WEIGHTS = 4
# What transformers raises for a config, or weights, that do not make a model.
_UNUSABLE = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
    StrictDataclassError,
)


def new_text_model(
    config: PreTrainedConfig, *, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The text model of a config, with random weights and a config of its own.

    Args:
        config: The config of a text model, or of a T5, whose encoder is meant.
        dtype: The dtype of the weights; None = the config's.

    Raises:
        ValueError: The installed transformers has no text model for this config.
    """
    model_class = _class_of(config)
    if model_class is None:
        raise ValueError(
            f"the installed transformers has no text model of type {config.model_type}"
        )
    # A model around this one sets its own kind of attention in its copy of the config.
    config = copy.deepcopy(config)
    if not model_class._supports_sdpa:
        config._attn_implementation = None
    if is_made_by_auto_model(config):
        return AutoModel.from_config(config, **({"dtype": dtype} if dtype else {}))
    return model_class(config).to(dtype or config.dtype or torch.float32)


def is_made_by_auto_model(config: PreTrainedConfig) -> bool:
    """Whether `AutoModel` makes the text tower of a config, as it does inside a saved model."""
    return config.model_type not in _CLASSES


def load_text_model(folder: Path, name: str, *, pooling: str) -> PreTrainedModel:
    """The text model in a folder, or the text half of the whole model there, in float32.

    Args:
        folder: The folder of a Hugging Face model.
        name: The model as `--text-encoder` names it.
        pooling: The pooling; the weights of a pooler that is not used may be missing.

    Raises:
        ConfigError: The folder has no model of texts, or its weights do not fill the model.
        DamagedError: The weights are cut, or are a pickle of more than tensors.
    """
    whole, config, model_class = read_text_config(folder, name)
    # Families without it are loaded with their own attention.
    attention = {"attn_implementation": "sdpa"} if model_class._supports_sdpa else {}
    renamed = {} if config is whole else {"key_mapping": {r"^text_model\.": ""}}
    with reading_weights(f"--text-encoder {name}"), _silent():
        try:
            model, info = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # so that the error lists them with the others
                output_loading_info=True,
                **attention,
                **renamed,
            )
        except _UNUSABLE as error:
            raise cannot_load(name, error) from error
    half_of = whole.model_type if config is not whole else ""
    _refuse_random_weights(info, name, half_of=half_of, with_pooler=pooling == "pooler")
    _note_own_pooling(folder, name, pooling)
    return model


def read_text_config(
    folder: Path, name: str
) -> tuple[PreTrainedConfig, PreTrainedConfig, type[PreTrainedModel]]:
    """The config of the model in a folder, that of its text model, and the class of the latter.

    Raises:
        ConfigError: There is no config, or the model has no text tower; the message names its type.
    """
    whole = _read_config(folder, name)
    half = getattr(whole, "text_config", None)
    config = half if isinstance(half, PreTrainedConfig) else whole
    model_class = _class_of(config)
    reason = ""
    if model_class is None:
        reason = "has no text tower that cit can take out"
    elif model_class.main_input_name != "input_ids":
        reason = f"takes {model_class.main_input_name}, not texts"
    elif is_made_by_auto_model(config) and config.is_encoder_decoder:
        reason = "is an encoder with a decoder, not a text tower"
    if reason:
        raise ConfigError(f"--text-encoder {name} ({whole.model_type}) {reason}; {_INSTEAD}")
    return whole, config, model_class


def cannot_load(name: str, error: Exception) -> ConfigError:
    """The error for a model or a tokenizer that transformers cannot load."""
    reason = first_line(error).split(" Should contain one of ")[0]  # some 600 types
    return ConfigError(
        f"--text-encoder {name} cannot be loaded: {reason.rstrip('.:')}. "
        "Give a directory with config.json, tokenizer.json and model.safetensors, "
        "or package:minilm, which needs no network"
    )


def _class_of(config: PreTrainedConfig) -> Any:
    """The class of a config's text model; None = transformers has none."""
    name = _CLASSES.get(config.model_type)
    found = getattr(transformers, name, None) if name else MODEL_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def _read_config(folder: Path, name: str) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        parts = [part for part in inside if (folder / part / "tokenizer_config.json").is_file()]
        hint = f"; its folder {parts[0]} has one, so give that" if parts else ""
        raise cannot_load(name, FileNotFoundError(f"{folder} has no config.json{hint}"))
    try:
        with _silent():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except _UNUSABLE as error:
        raise cannot_load(name, error) from error


def _refuse_random_weights(
    info: Mapping[str, Any], name: str, *, half_of: str, with_pooler: bool
) -> None:
    """Raise when weights of a model, or of the half of a whole one, would be random."""
    misshaped = {
        weight: f"{weight} (has {tuple(stored)}, needs {tuple(needed)})"
        for weight, stored, needed in info["mismatched_keys"]
    }
    missing = {weight for weight in info["missing_keys"] if not _COMPUTED.search(weight)}
    random = sorted(missing | misshaped.keys())
    poolers = [weight for weight in random if _POOLER.search(weight)]
    if not with_pooler:
        random = [weight for weight in random if weight not in poolers]
    if not random:
        return
    shown = ", ".join(misshaped.get(weight, weight) for weight in random[:_SHOWN_WEIGHTS])
    more = f" and {len(random) - _SHOWN_WEIGHTS} more" if len(random) > _SHOWN_WEIGHTS else ""
    lacks = f"--text-encoder {name}: its weight files do not have {shown}{more}"
    if random == poolers:
        raise ConfigError(
            f"{lacks}, so its pooler output would be random, another at every run; "
            "choose --pooling mean, or --pooling cls"
        )
    hint = "take weights that match config.json"
    if half_of:
        hint = f"save the text model of this {half_of} with save_pretrained, and give that folder"
    raise ConfigError(f"{lacks}, which would be random; {hint}")


def _note_own_pooling(folder: Path, name: str, pooling: str) -> None:
    """Warn when sentence-transformers made the model for another pooling, or for a layer above it.

    Its `modules.json` lists the modules of a model; that of the pooling has a config of its own.
    """
    file = folder / "modules.json"
    modules = read_json(file) if file.is_file() else []
    for module in modules if isinstance(modules, list) else []:
        if not isinstance(module, dict):
            continue
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        config = folder / path / "config.json"
        if kind == "Dense":
            logger.warning(
                "--text-encoder %s has a dense layer (%s), which cit leaves out", name, path
            )
        if kind == "Pooling" and config.is_file():
            own = _own_pooling(read_json(config))
            hint = f"; give --pooling {own}" if own in ("mean", "cls") else ""
            if own != pooling:
                logger.warning(
                    "--text-encoder %s was made for %s pooling, not for --pooling %s%s",
                    *(name, own, pooling, hint),
                )


def _own_pooling(config: Mapping[str, Any]) -> str:
    """The pooling of a sentence-transformers model: `mean`, `cls`, or another in its own words."""
    names = {"cls_token": "cls", "mean_tokens": "mean"}
    prefix = "pooling_mode"
    own = config.get(prefix) or [
        key.removeprefix(f"{prefix}_")
        for key, on in config.items()
        if key.startswith(prefix) and on
    ]
    parts = [own] if isinstance(own, str) else own
    return " + ".join(names.get(part, str(part)) for part in parts) or "an unknown"


@contextmanager
def _silent() -> Iterator[None]:
    """A block in which transformers reports no differences: they are errors here, or harmless."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
