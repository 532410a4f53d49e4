"""A registered Hugging Face text model that pools by the mean or by the first token.

`VisionTextDualEncoderModel` uses its text tower's `pooler_output`. A tower made for another pooling
is wrapped in this type. So a saved model records its pooling, and loads with `AutoModel` once this
module (or `cit_train.models`) has been imported.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling


class PooledTextConfig(PreTrainedConfig):  # type: ignore[misc]
    """The wrapped tower's own config, and the pooling: `mean` or `cls`."""

    model_type = "pooled-text"
    sub_configs_defaults = {  # noqa: RUF012 - the form that transformers requires
        "tower_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")
    }

    tower_config: PreTrainedConfig | dict[str, Any] | None = None
    pooling: str = "mean"
    hidden_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Take the width of the wrapped tower."""
        if isinstance(self.tower_config, dict):
            self.tower_config = AutoConfig.for_model(**self.tower_config)
        elif self.tower_config is None:
            self.tower_config = AutoConfig.for_model("bert")
        self.hidden_size = self.tower_config.hidden_size  # type: ignore[union-attr]
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """The vocabulary size of the wrapped tower."""
        return int(self.tower_config.vocab_size)  # type: ignore[union-attr]


class PooledTextModel(PreTrainedModel):  # type: ignore[misc]
    """A text tower with mean or first-token pooling instead of its pooler."""

    config_class = PooledTextConfig
    config: PooledTextConfig
    base_model_prefix = "pooled_text"
    _supports_sdpa = True

    def __init__(self, config: PooledTextConfig, tower: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if tower is None:
            tower = AutoModel.from_config(config.tower_config)
        # An unused pooler would be saved, decayed and fingerprinted for nothing.
        if hasattr(tower, "pooler"):
            tower.pooler = None
        self.tower = tower
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        """The wrapped tower's token embeddings."""
        embeddings: torch.nn.Module = self.tower.get_input_embeddings()
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """The token vectors and the pooled text.

        Args:
            input_ids: int64 [batch, tokens].
            attention_mask: int64 [batch, tokens], 1 = a token, 0 = padding.
            **kwargs: Further arguments of the wrapped tower.

        Returns:
            `last_hidden_state` float [batch, tokens, dim], `pooler_output` float [batch, dim].
        """
        kwargs.pop("return_dict", None)
        output = self.tower(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        tokens = output.last_hidden_state
        if self.config.pooling == "cls":
            pooled = tokens[:, 0]
        else:
            if attention_mask is None:
                attention_mask = torch.ones(tokens.shape[:2], device=tokens.device)
            # mask: [batch, tokens, 1]
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            pooled = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)


AutoConfig.register(PooledTextConfig.model_type, PooledTextConfig)
AutoModel.register(PooledTextConfig, PooledTextModel)
