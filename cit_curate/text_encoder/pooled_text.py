"""Registered Hugging Face text models that say how a text tower is called and pooled.

`VisionTextDualEncoderModel` uses its text tower's `pooler_output`. A tower made for another
pooling, for texts padded to one length, or that `AutoModel` does not make, is wrapped in one of
these types. So a saved model records all that, and loads with `AutoModel` once this module (or
`cit_train.models`) has been imported.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cit_curate.text_encoder.text_models import is_made_by_auto_model, new_text_model

# Families whose text towers were trained on texts padded to all positions, without a mask.
_PADDED = ("siglip_text_model", "siglip2_text_model")


class PooledTextConfig(PreTrainedConfig):  # type: ignore[misc]
    """The wrapped tower's own config, and the pooling: `pooler`, `mean` or `cls`."""

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
    """A text tower with a pooling of its config."""

    config_class = PooledTextConfig
    config: PooledTextConfig
    base_model_prefix = "pooled_text"
    _supports_sdpa = True

    def __init__(self, config: PooledTextConfig, tower: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if tower is None:
            tower = new_text_model(config.tower_config)
        # An unused pooler, SigLIP's `head`, would be saved, decayed and fingerprinted for nothing.
        for name in ("pooler", "head") if config.pooling != "pooler" else ():
            if isinstance(getattr(tower, name, None), torch.nn.Module):
                setattr(tower, name, torch.nn.Identity())  # not None: some families call it anyway
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
            `last_hidden_state` float [batch, tokens, dim], `pooler_output` float [batch, dim],
            which is None where the tower has no pooler that the config asks for.
        """
        kwargs.pop("return_dict", None)
        output = self._encode(input_ids, attention_mask, **kwargs)
        tokens = output.last_hidden_state
        if self.config.pooling == "pooler":
            pooled = getattr(output, "pooler_output", None)
        elif self.config.pooling == "cls":
            pooled = tokens[:, 0]
        else:
            if attention_mask is None:
                attention_mask = torch.ones(tokens.shape[:2], device=tokens.device)
            # mask: [batch, tokens, 1]
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            pooled = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)

    def _encode(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        return self.tower(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


class PaddedTextConfig(PooledTextConfig):
    """A tower that was trained on texts padded to one length, without a mask: SigLIP's."""

    model_type = "padded-text"

    padded_length: int = 64
    padding_side: str = "right"
    pad_token_id: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Take the width of the wrapped tower: that of its head, where the head is used."""
        super().__post_init__(**kwargs)
        if self.pooling == "pooler":
            self.hidden_size = getattr(self.tower_config, "projection_size", self.hidden_size)


class PaddedTextModel(PooledTextModel):
    """A text tower that sees every text padded to `padded_length` tokens, padding included."""

    config_class = PaddedTextConfig
    config: PaddedTextConfig
    base_model_prefix = "padded_text"

    def _encode(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The tower's output, with `last_hidden_state` of the given tokens alone, in their places.

        Args:
            input_ids: int64 [batch, tokens], padded on the right to any length.
            attention_mask: int64 [batch, tokens]; None = all are tokens.
            **kwargs: Further arguments of the tower.

        Raises:
            ValueError: There are more tokens than `padded_length`.
        """
        if input_ids is None:
            raise ValueError("a padded text tower needs input_ids")
        length, num_given = self.config.padded_length, input_ids.shape[1]
        if num_given > length:
            raise ValueError(f"there are {num_given} tokens; texts are padded to {length}")
        is_token = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pad = self.config.pad_token_id
        ids = torch.where(is_token.bool(), input_ids, pad)
        ids = functional.pad(ids, (0, length - num_given), value=pad)
        shift = torch.zeros_like(ids[:, :1])
        if self.config.padding_side == "left":
            shift = length - is_token.sum(dim=1, keepdim=True)
        # places: int64 [batch, length], where each given token lies in the padded text
        places = (torch.arange(length, device=ids.device) + shift) % length
        padded = torch.empty_like(ids).scatter_(1, places, ids)
        output = self.tower(input_ids=padded, **kwargs)
        hidden = output.last_hidden_state
        own = places[:, :num_given, None].expand(-1, -1, hidden.shape[2])
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden.gather(1, own), pooler_output=output.pooler_output
        )


for _config, _model in ((PooledTextConfig, PooledTextModel), (PaddedTextConfig, PaddedTextModel)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)


def pooled_tower(
    tower: PreTrainedModel, pooling: str, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A tower whose `pooler_output` is that of a pooling: the tower itself, or one around it.

    A tower that is of these types already keeps its own pooling.

    Args:
        tower: The text model of a family.
        pooling: `pooler`, `mean` or `cls`.
        tokenizer: The tower's tokenizer, with a pad token.
    """
    if isinstance(tower, PooledTextModel):
        return tower
    # Without the path it was loaded from, which does not belong in a saved model.
    own = tower.config.to_dict() | {"_name_or_path": ""}
    if tower.config.model_type in _PADDED:
        padded = PaddedTextConfig(
            tower_config=own,
            pooling=pooling,
            padded_length=tower.config.max_position_embeddings,
            padding_side=tokenizer.padding_side,
            pad_token_id=tokenizer.pad_token_id,
        )
        return PaddedTextModel(padded, tower)
    if pooling == "pooler" and is_made_by_auto_model(tower.config):
        return tower
    return PooledTextModel(PooledTextConfig(tower_config=own, pooling=pooling), tower)
