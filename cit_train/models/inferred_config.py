"""Configs inferred from the names and shapes of tensors, for checkpoints without a config.

No shape shows the number of attention heads; it follows from the architecture's name (ViT) or from
the head size of 64 that every published BERT has.
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor
from transformers import BertConfig, VisionTextDualEncoderConfig

from cit_curate.errors import ConfigError
from cit_train.models.swag_names import rename_to_timm
from cit_train.models.timm_tower import (
    NO_MOCO_SMALL,
    SWAG_ARCHITECTURES,
    AugregConfig,
    MocoConfig,
    SwagConfig,
    TimmTowerConfig,
)

__all__ = ["infer_dual_config", "infer_text_config", "infer_tower_config"]

FAMILIES = ("moco", "augreg", "swag")
BERT_HEAD_SIZE = 64
_OTHER_TOWERS = (
    "A checkpoint with other towers needs its config.json: "
    "cit convert checkpoint SOURCE OUT --config config.json"
)
# (width, patch side, blocks) -> timm's name
ARCHITECTURES = {
    (192, 16, 12): "vit_tiny_patch16_224",
    (384, 16, 12): "vit_small_patch16_224",
    (384, 32, 12): "vit_small_patch32_224",
    (768, 16, 12): "vit_base_patch16_224",
    (768, 32, 12): "vit_base_patch32_224",
    (1024, 16, 24): "vit_large_patch16_224",
    (1024, 32, 24): "vit_large_patch32_224",
    (1280, 14, 32): "vit_huge_patch14_224",
}


def infer_tower_config(family: str, tensors: Mapping[str, Tensor]) -> TimmTowerConfig:
    """The config of a `moco`, `augreg` or `swag` tower.

    Args:
        family: The family: `moco`, `augreg` or `swag`.
        tensors: The tensors by timm's names, without the family's prefix.

    Raises:
        ConfigError: The tensors are not a ViT's, or of an unknown size, or MoCo-v3's small ViT.
    """
    try:
        width, _, _, patch = tensors["patch_embed.proj.weight"].shape
        grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"these are not the tensors of a {family} ViT: patch_embed.proj.weight or pos_embed "
            f"is missing or misshaped; found {_first_names(tensors)}"
        ) from error
    shape = (width, patch, _num_layers(tensors, r"blocks\.(\d+)\."))
    if shape not in ARCHITECTURES:
        known = ", ".join(map(str, ARCHITECTURES))
        raise ConfigError(
            f"no known ViT has (width, patch, blocks) = {shape}; known are {known}. {_OTHER_TOWERS}"
        )
    name, side = ARCHITECTURES[shape], grid * patch
    if family == "swag":
        swag_names = {timm: swag for swag, timm in SWAG_ARCHITECTURES.items()}
        return SwagConfig(config_name=swag_names.get(name, name), image_size=side)
    if family == "augreg":
        classes = len(tensors["head.weight"]) if "head.weight" in tensors else 0
        return AugregConfig(config_name=name, image_size=side, num_classes=classes)
    if name == "vit_small_patch16_224":
        raise ConfigError(NO_MOCO_SMALL)
    if "head.0.weight" not in tensors or "head.6.weight" not in tensors:
        raise ConfigError(
            f"MoCo's projector (head.0 … head.7) is missing; found {_first_names(tensors)}"
        )
    return MocoConfig(
        config_name=name,
        image_size=side,
        projector_size=len(tensors["head.0.weight"]),
        hidden_size=len(tensors["head.6.weight"]),
    )


def infer_text_config(tensors: Mapping[str, Tensor]) -> BertConfig:
    """The config of a BERT from its tensors.

    Raises:
        ConfigError: The tensors are not a BERT's, or may be a RoBERTa's, which numbers positions
            differently.
    """
    try:
        vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
        positions = len(tensors["embeddings.position_embeddings.weight"])
        types = len(tensors["embeddings.token_type_embeddings.weight"])
        intermediate = len(tensors["encoder.layer.0.intermediate.dense.weight"])
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the text tower is not a BERT; found {_first_names(tensors)}. {_OTHER_TOWERS}"
        ) from error
    if types == 1:
        raise ConfigError(f"the text tower looks like a RoBERTa (one token type). {_OTHER_TOWERS}")
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=_num_layers(tensors, r"encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, width // BERT_HEAD_SIZE),
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        type_vocab_size=types,
    )


def infer_dual_config(tensors: Mapping[str, Tensor]) -> VisionTextDualEncoderConfig:
    """The config of a dual encoder of one of our ViTs and a BERT.

    Args:
        tensors: The tensors by their released names: `vision_model.moco.*`, `text_model.*`, ….

    Raises:
        ConfigError: A tower cannot be inferred from its names and shapes.
    """
    families = sorted({name.split(".")[1] for name in tensors if name.startswith("vision_model.")})
    if len(families) != 1 or families[0] not in FAMILIES:
        raise ConfigError(
            f"the vision tower is none of {', '.join(FAMILIES)}; "
            f"found {_first_names(tensors)}. {_OTHER_TOWERS}"
        )
    if "visual_projection.weight" not in tensors:
        raise ConfigError(f"visual_projection.weight is missing; found {_first_names(tensors)}")
    vision = _below(tensors, f"vision_model.{families[0]}.")
    if families[0] == "swag":
        vision = rename_to_timm(vision)
    return VisionTextDualEncoderConfig.from_vision_text_configs(
        infer_tower_config(families[0], vision),
        infer_text_config(_below(tensors, "text_model.")),
        projection_dim=len(tensors["visual_projection.weight"]),
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _num_layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for match in map(re.compile(pattern).match, tensors) if match})


def _first_names(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted(tensors)[:4]) + ", …"
