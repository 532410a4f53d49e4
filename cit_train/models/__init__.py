"""The dual encoder; importing this registers our Hugging Face model types."""

from cit_curate.text_encoder.pooled_text import PooledTextConfig, PooledTextModel
from cit_train.models.timm_tower import (
    AugregConfig,
    AugregModel,
    MocoConfig,
    MocoModel,
    SwagConfig,
    SwagModel,
    TimmTowerModel,
)

__all__ = [
    "AugregConfig",
    "AugregModel",
    "MocoConfig",
    "MocoModel",
    "PooledTextConfig",
    "PooledTextModel",
    "SwagConfig",
    "SwagModel",
    "TimmTowerModel",
]
