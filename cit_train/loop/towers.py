"""The dual encoder of a run before training, with the device and precision of this rank."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from cit_curate.text_encoder.checks import check_text_tower
from cit_curate.text_encoder.encoder import choose_device
from cit_curate.text_encoder.load import load_text_tower, weights_sha256
from cit_train.config import RunConfig
from cit_train.models.dual_encoder import build_dual_encoder
from cit_train.models.freeze import freeze
from cit_train.models.load import is_foreign, load_dual_encoder
from cit_train.models.towers import load_vision_tower
from cit_train.models.vision_engine import choose_engine
from cit_train.ranks.gpus import own_gpu
from cit_train.ranks.world import World
from cit_train.transforms import image_statistics

AUTOCAST = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Towers:
    """The dual encoder before training, and how this rank computes.

    Attributes:
        model: The dual encoder, on the CPU, with gradients for its trained parts.
        tokenizer: The text tower's tokenizer.
        fingerprints: Those of both towers, by their keys in config.json.
        device: The device of this rank.
        precision: The precision of an update.
        vision_engine: The engine of cached vision features.
    """

    model: VisionTextDualEncoderModel
    tokenizer: PreTrainedTokenizerBase
    fingerprints: Mapping[str, str]
    device: torch.device
    precision: str
    vision_engine: str


def open_towers(config: RunConfig, world: World) -> Towers:
    """Load the towers and freeze what is not trained.

    Raises:
        ConfigError: A tower, the device or the vision engine cannot be used.
        DamagedError: Weights are cut.
    """
    model, tokenizer = _load_model(config)
    # A vision feature depends on the pixel normalisation, too, which no weight shows.
    statistics = repr(image_statistics(model.config.vision_config))
    vision = f"{weights_sha256(model.vision_model)} {statistics}"
    fingerprints = {
        "text_fingerprint": weights_sha256(model.text_model),
        "vision_fingerprint": hashlib.sha256(vision.encode()).hexdigest(),
    }
    freeze(model, config.model)
    device = _own_device(config.train.device, world)
    train = config.train
    engine = "torch"
    if train.vision_features == "cached":
        engine = choose_engine(train.vision_engine, train.vision_precision, device)
    precision = _precision(config, device)
    return Towers(model, tokenizer, fingerprints, device, precision, engine)


def _load_model(config: RunConfig) -> tuple[VisionTextDualEncoderModel, PreTrainedTokenizerBase]:
    if config.model.init_from:
        checkpoint = Path(config.model.init_from)
        # The original CiT's checkpoints have no tokenizer, so the text tower's is used.
        other = config.text.text_encoder if is_foreign(checkpoint) else None
        model, tokenizer = load_dual_encoder(checkpoint, tokenizer=other)
        check_text_tower(
            model.text_model,
            tokenizer,
            max_text_length=config.text.max_text_length,
            subject=f"--init-from {checkpoint}",
        )
        return model, tokenizer
    text, tokenizer = load_text_tower(config.text)
    vision = load_vision_tower(config.model.vision_encoder)
    model = build_dual_encoder(
        vision, text, projection_dim=config.model.projection_dim, seed=config.curate.seed
    )
    return model, tokenizer


def _own_device(name: str, world: World) -> torch.device:
    """The device of this rank: with several ranks on a machine, each has its own GPU."""
    device = choose_device(name)
    if device.type == "cuda" and world.size > 1:
        device = own_gpu(world.local_rank)
        torch.cuda.set_device(device)
    return device


def _precision(config: RunConfig, device: torch.device) -> str:
    if config.train.precision != "auto":
        return config.train.precision
    return "float16" if device.type == "cuda" else "float32"
