"""The dual encoder; importing this registers our Hugging Face model types."""

from cit_curate.text_encoder.pooled_text import (
    PaddedTextConfig,
    PaddedTextModel,
    PooledTextConfig,
    PooledTextModel,
)
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
    "PaddedTextConfig",
    "PaddedTextModel",
    "PooledTextConfig",
    "PooledTextModel",
    "SwagConfig",
    "SwagModel",
    "TimmTowerModel",
]
