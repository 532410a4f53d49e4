"""MoCo-v3, AugReg and SWAG ViTs as Hugging Face vision towers: one adapter over timm's ViT.

Each is a registered model type (`moco`, `augreg`, `swag`) with timm's ViT in an attribute of that
name, so its tensors are called `moco.*`, `augreg.*`, `swag.*` as in the published files
(docs/vision-towers.md). Tensors of a checkpoint that must never train (the position table of MoCo,
the classifier of AugReg) are buffers, which no optimizer reaches.
"""

import difflib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cit_curate.errors import ConfigError
from cit_train.models.swag_names import register_with_transformers, rename_to_timm

__all__ = [
    "AugregConfig",
    "AugregModel",
    "MocoConfig",
    "MocoModel",
    "SwagConfig",
    "SwagModel",
    "TimmTowerConfig",
    "TimmTowerModel",
    "position_table",
]

TEMPERATURE = 10_000
IN21K_CLASSES = 21_843
MOCO_POOLED_SIZE = 256
# MoCo-v3 (arXiv 2104.02057) splits the 384 dimensions of its small ViT among 12 heads, timm among
# 6. No tensor shows it, so timm's would load without an error and give other features.
NO_MOCO_SMALL = (
    "MoCo-v3's small ViT has 12 heads, and timm's ViT of that width has 6; "
    "of MoCo-v3, only the base ViT (vit_base_patch16) can be read"
)
# The families' own names of architectures -> timm's.
MOCO_ARCHITECTURES = MappingProxyType({"vit_base_patch16": "vit_base_patch16_224"})
SWAG_ARCHITECTURES = MappingProxyType(
    {
        "vit_b16": "vit_base_patch16_224",
        "vit_l16": "vit_large_patch16_224",
        "vit_h14": "vit_huge_patch14_224",
    }
)


class TimmTowerConfig(PreTrainedConfig):  # type: ignore[misc]
    """The config that the three families share.

    `own_names` maps the family's own names of architectures to timm's.

    Attributes:
        config_name: The architecture: a timm ViT, or the family's own name of one (`own_names`).
        image_size: The side of the input, in pixels.
        hidden_size: The width of the pooled output; None = the architecture's.
    """

    own_names: ClassVar[Mapping[str, str]] = MappingProxyType({})
    config_name: str = "vit_base_patch16_224"
    image_size: int = 224
    hidden_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the width."""
        if self.hidden_size is None:
            self.hidden_size = self._pooled_size()
        super().__post_init__(**kwargs)

    @property
    def architecture(self) -> str:
        """The architecture under timm's name.

        Raises:
            ConfigError: Neither the family nor timm has an architecture of that name.
        """
        # timm used to list the AugReg weights as separate architectures.
        name = self.own_names.get(self.config_name, self.config_name.removesuffix("_in21k"))
        # Names that timm does not list are refused here, since `create_model` also accepts URLs.
        known = timm.list_models(module="vision_transformer")
        if name not in known:
            raise ConfigError(self._unknown_architecture(known))
        return name

    def _unknown_architecture(self, known: list[str]) -> str:
        close = difflib.get_close_matches(self.config_name, (*self.own_names, *known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        tower = f"config_name of the {self.model_type} tower"
        return f"{tower}: timm has no ViT {self.config_name!r}{hint}"

    def _pooled_size(self) -> int:
        with torch.device("meta"):
            return int(plain_vit(self.architecture).num_features)


class MocoConfig(TimmTowerConfig):
    """MoCo-v3: a ViT and the projector that it was pre-trained with.

    Attributes:
        projector_size: The width of the projector's two hidden layers.
    """

    model_type = "moco"
    own_names = MOCO_ARCHITECTURES
    projector_size: int = 4096

    def _pooled_size(self) -> int:
        return MOCO_POOLED_SIZE

    def _unknown_architecture(self, known: list[str]) -> str:
        if "small" in self.config_name:
            return f"config_name {self.config_name!r}: {NO_MOCO_SMALL}"
        return super()._unknown_architecture(known)


class AugregConfig(TimmTowerConfig):
    """AugReg: a ViT trained on ImageNet-21k.

    Attributes:
        num_classes: The classes of the unused classifier in the weights; 0 = no classifier.
    """

    model_type = "augreg"
    num_classes: int = IN21K_CLASSES


class SwagConfig(TimmTowerConfig):
    """SWAG: a ViT pre-trained on hashtags."""

    model_type = "swag"
    own_names = SWAG_ARCHITECTURES
    config_name: str = "vit_b16"


def plain_vit(architecture: str, *, image_size: int = 224) -> VisionTransformer:
    """A timm ViT with a class token and no classifier, freshly initialised.

    Args:
        architecture: A ViT that timm lists (`TimmTowerConfig.architecture`).
        image_size: The side of the input, in pixels.

    Raises:
        ConfigError: It has no class token.
    """
    vit = timm.create_model(
        architecture, pretrained=False, num_classes=0, img_size=image_size, global_pool="token"
    )
    if not isinstance(vit, VisionTransformer) or not vit.has_class_token:
        raise ConfigError(f"{architecture!r} is not a ViT with a class token")
    return vit


def position_table(grid: int, width: int) -> Tensor:
    """MoCo-v3's fixed positions: sines and cosines of row and column, zero for the class token.

    Frequency k of width / 4 is 10000^(-k / (width / 4)). The entries of a position are sin and cos
    of its row, then of its column: the published table has the slow index of the patches first.

    Args:
        grid: The patches in a row and in a column.
        width: The width of the transformer, a multiple of 4.

    Returns:
        float32 [1, 1 + grid², width].
    """
    frequencies = TEMPERATURE ** (-torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    # angles: [grid, width / 4]
    angles = torch.arange(grid, dtype=torch.float32)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, width / 2]
    table = torch.cat([along.repeat_interleave(grid, dim=0), along.repeat(grid, 1)], dim=1)
    return torch.cat([torch.zeros(1, width), table])[None]


class UnusedClassifier(nn.Module):
    """The tensors of a classifier in a checkpoint, which no forward pass uses."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, width))
        self.register_buffer("bias", torch.zeros(num_classes))


class TimmTowerModel(PreTrainedModel):  # type: ignore[misc]
    """A timm ViT with a pooled output, the base class of the three families.

    Attributes:
        has_trainable_head: Whether `pooler_output` is `head(frozen_features(pixel_values))`. If
            not, it is the frozen features, and `head` is None.
    """

    config: TimmTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    has_trainable_head: ClassVar[bool] = False

    def __init__(self, config: TimmTowerConfig) -> None:
        super().__init__(config)
        vit = plain_vit(config.architecture, image_size=config.image_size)
        self._complete(vit)
        if not self.has_trainable_head and config.hidden_size != vit.num_features:
            raise ConfigError(
                f"config.hidden_size is {config.hidden_size}, "
                f"but {config.architecture} is {vit.num_features} wide"
            )
        setattr(self, config.model_type, vit)
        self.post_init()

    @property
    def backbone(self) -> VisionTransformer:
        """The timm ViT, with the family's head in `head`."""
        return getattr(self, self.config.model_type)

    @property
    def head(self) -> nn.Module | None:
        """The module from frozen features to the pooled output; None where the two are the same."""
        return self.backbone.head if self.has_trainable_head else None

    def frozen_features(self, pixel_values: Tensor) -> Tensor:
        """[CLS] after the final norm and before any head, which a feature cache may keep.

        Args:
            pixel_values: float [batch, 3, image_size, image_size], normalised.

        Returns:
            float [batch, transformer width].
        """
        tokens: Tensor = self.backbone.forward_features(pixel_values)
        return tokens[:, 0]

    def forward(
        self, pixel_values: Tensor, return_dict: bool | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Patch vectors and the pooled output.

        Args:
            pixel_values: float [batch, 3, image_size, image_size], normalised.
            return_dict: False = return a tuple.
            **kwargs: `output_attentions` and `output_hidden_states`, which must be false.

        Returns:
            `last_hidden_state` float [batch, 1 + patches, width], `pooler_output` float
            [batch, config.hidden_size].

        Raises:
            ValueError: Attentions or hidden states are requested.
        """
        if kwargs.get("output_attentions") or kwargs.get("output_hidden_states"):
            raise ValueError(f"a {self.config.model_type} tower has no attentions or hidden states")
        tokens = self.backbone.forward_features(pixel_values)
        pooled = tokens[:, 0] if self.head is None else self.head(tokens[:, 0])
        output = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)
        return output.to_tuple() if return_dict is False else output

    def _complete(self, vit: VisionTransformer) -> None:
        """Add the family's own parts to timm's plain ViT."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionTransformer):
            init.normal_(module.cls_token, std=0.02)
            init.trunc_normal_(module.pos_embed, std=0.02)
        elif isinstance(module, UnusedClassifier):
            init.zeros_(module.weight)
            init.zeros_(module.bias)


class MocoModel(TimmTowerModel):
    """MoCo-v3 with its projector, which may train; the pooled output is the projector's output."""

    config_class = MocoConfig
    config: MocoConfig
    has_trainable_head = True

    def _complete(self, vit: VisionTransformer) -> None:
        hidden, pooled = self.config.projector_size, self.config.hidden_size or MOCO_POOLED_SIZE
        vit.head = nn.Sequential(
            nn.Linear(vit.num_features, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, pooled, bias=False),
            nn.BatchNorm1d(pooled, affine=False),
        )
        del vit.pos_embed
        vit.register_buffer("pos_embed", self._positions(vit))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionTransformer):
            init.copy_(module.pos_embed, self._positions(module))

    @staticmethod
    def _positions(vit: VisionTransformer) -> Tensor:
        return position_table(math.isqrt(vit.patch_embed.num_patches), vit.num_features)


class AugregModel(TimmTowerModel):
    """AugReg; the pooled output is [CLS] after the final norm."""

    config_class = AugregConfig
    config: AugregConfig

    def _complete(self, vit: VisionTransformer) -> None:
        if self.config.num_classes:
            vit.head = UnusedClassifier(vit.num_features, self.config.num_classes)


class SwagModel(TimmTowerModel):
    """SWAG; the pooled output is [CLS] after the final norm.

    Its files have SWAG's names, its modules timm's: see `cit_train.models.swag_names`.
    """

    config_class = SwagConfig
    config: SwagConfig

    def __init__(self, config: SwagConfig) -> None:
        super().__init__(config)
        self.register_load_state_dict_pre_hook(_accept_swag_names)


def _accept_swag_names(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: object
) -> None:
    renamed = rename_to_timm(state_dict, prefix=f"{prefix}swag.")
    state_dict.clear()
    state_dict.update(renamed)


for _config, _model in (
    (MocoConfig, MocoModel),
    (AugregConfig, AugregModel),
    (SwagConfig, SwagModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
register_with_transformers()
