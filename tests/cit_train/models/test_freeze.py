"""What is trained, in which mode, and whose statistics BatchNorm keeps."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertModel, PreTrainedModel, ViTConfig, ViTModel

from cit_curate.errors import ConfigError
from cit_curate.text_encoder.pooled_text import PooledTextConfig, PooledTextModel
from cit_train.config import ModelConfig, replace_fields
from cit_train.models.dual_encoder import build_dual_encoder
from cit_train.models.freeze import (
    freeze,
    frozen_features,
    running_statistics,
    set_train_mode,
    trains_vision_tower,
    with_head,
)
from cit_train.models.towers import load_vision_tower
from cit_train.recipes import default


class HeadedViT(ViTModel):
    """A tiny ViT with a head on its pooled output, as MoCo's tower has one."""

    has_trainable_head = True

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.head = nn.Sequential(nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16))

    def frozen_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values).pooler_output

    def forward(self, pixel_values: torch.Tensor, **kwargs: object) -> object:
        output = super().forward(pixel_values)
        output.pooler_output = self.head(output.pooler_output)
        return output


def headed() -> HeadedViT:
    torch.manual_seed(3)
    return HeadedViT(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        )
    )


def dual(world: Path, vision: PreTrainedModel | None = None, **fields: object) -> nn.Module:
    vision = vision or load_vision_tower(str(world / "vision"))
    text = BertModel.from_pretrained(world / "text")
    model = build_dual_encoder(vision, text, projection_dim=8, seed=0)
    freeze(model, ModelConfig(**fields))
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_by_default_the_vision_tower_is_frozen_and_stays_in_eval_mode(world: Path) -> None:
    model = dual(world)
    set_train_mode(model)
    assert not any(module.training for module in model.vision_model.modules())
    assert all(module.training for module in model.text_model.modules())
    assert {name.split(".")[0] for name in trained(model)} == {
        "text_model",
        "visual_projection",
        "text_projection",
        "logit_scale",
    }
    assert not trains_vision_tower(model)


def test_a_head_is_trained_in_train_mode_on_a_frozen_tower(world: Path) -> None:
    model = dual(world, headed())
    set_train_mode(model)
    in_vision = {name for name in trained(model) if name.startswith("vision_model.")}
    assert in_vision
    assert all(".head." in name for name in in_vision)
    assert model.vision_model.head.training
    assert not model.vision_model.embeddings.training
    assert not trains_vision_tower(model)
    none = dual(world, headed(), train_vision="none")
    set_train_mode(none)
    assert not any(name.startswith("vision_model.") for name in trained(none))
    assert not none.vision_model.head.training


def test_features_below_the_head_and_the_head_make_the_pooled_output() -> None:
    tower = headed().eval()
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        features = frozen_features(tower, pixels)
        assert torch.equal(with_head(tower, features), tower(pixel_values=pixels).pooler_output)
    plain = ViTModel(headed().config).eval()
    with torch.no_grad():
        features = frozen_features(plain, pixels)
        assert with_head(plain, features) is features


def test_all_trains_the_whole_tower(world: Path) -> None:
    model = dual(world, headed(), train_vision="all")
    set_train_mode(model)
    assert trained(model) == {name for name, _ in model.named_parameters()}
    assert trains_vision_tower(model)
    assert all(module.training for module in model.vision_model.modules())


def test_pool_trains_the_pooler_of_the_text_tower_alone(world: Path) -> None:
    model = dual(world, train_text="pool")
    assert {name for name in trained(model) if name.startswith("text_model.")} == {
        "text_model.pooler.dense.weight",
        "text_model.pooler.dense.bias",
    }
    set_train_mode(model)
    assert model.text_model.training, "its dropout stays on, as while all of it is trained"


def test_a_text_tower_without_a_pooler_cannot_train_it(world: Path) -> None:
    text = BertModel.from_pretrained(world / "text")
    config = PooledTextConfig(tower_config=text.config.to_dict(), pooling="mean")
    vision = load_vision_tower(str(world / "vision"))
    model = build_dual_encoder(vision, PooledTextModel(config, text), projection_dim=8, seed=0)
    with pytest.raises(ConfigError, match="no pooler"):
        freeze(model, ModelConfig(train_text="pool"))


def test_only_one_lane_moves_the_running_statistics() -> None:
    layer = nn.Sequential(nn.BatchNorm1d(4))
    batch = torch.randn(8, 4)
    with running_statistics(layer, update=False):
        unmoved = layer(batch)
    assert torch.equal(layer[0].running_mean, torch.zeros(4))
    assert int(layer[0].num_batches_tracked) == 0
    with running_statistics(layer, update=True):
        moved = layer(batch)
    assert torch.equal(unmoved, moved), "both are normalised with the batch's own statistics"
    assert not torch.equal(layer[0].running_mean, torch.zeros(4))
    layer.eval()
    with running_statistics(layer, update=False):
        assert not torch.equal(layer(batch), moved), "in eval mode the running ones count"


def test_features_of_a_tower_that_is_trained_cannot_be_cached() -> None:
    with pytest.raises(ConfigError, match="cannot be cached"):
        replace_fields(default(), train_vision="all", vision_features="cached")
