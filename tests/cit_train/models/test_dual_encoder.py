"""How the model starts, what of it trains, and which towers it takes."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from tiny import make_config
from transformers import AutoModel, BertModel, TimmWrapperConfig, TimmWrapperModel

from cit_curate.errors import ConfigError
from cit_train.loop.session import open_session
from cit_train.models.dual_encoder import build_dual_encoder
from cit_train.models.towers import load_vision_tower, with_width


def towers(world: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    return load_vision_tower(str(world / "vision")), BertModel.from_pretrained(world / "text")


def test_projections_start_uniform_and_the_logit_scale_at_its_value(world: Path) -> None:
    model = build_dual_encoder(*towers(world), projection_dim=512, seed=0)
    for projection in (model.visual_projection, model.text_projection):
        bound = 1 / np.sqrt(32)
        weight = projection.weight.detach()
        assert projection.bias is None
        assert weight.abs().max() <= bound
        # A uniform variable on (-b, b) has the deviation b / sqrt(3); N(0, 0.02) would not.
        assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert model.logit_scale.item() == pytest.approx(2.6592)
    again = build_dual_encoder(*towers(world), projection_dim=512, seed=0)
    assert torch.equal(again.text_projection.weight, model.text_projection.weight)


def test_any_timm_model_is_a_vision_tower(world: Path, tmp_path: Path) -> None:
    config = TimmWrapperConfig(
        architecture="mobilenetv3_small_050",
        num_labels=0,
        pretrained_cfg=timm.get_pretrained_cfg("mobilenetv3_small_050").to_dict(),
    )
    TimmWrapperModel(config).save_pretrained(tmp_path / "timm")
    tower = load_vision_tower(str(tmp_path / "timm"))
    assert tower.config.hidden_size == 1024
    model = build_dual_encoder(tower, towers(world)[1], projection_dim=8, seed=0).eval()
    model.save_pretrained(tmp_path / "dual")
    # Copied, since some machines' convolutions round by where the weights lie in memory, and what
    # was read from a file lies as the file has it.
    again = copy.deepcopy(AutoModel.from_pretrained(tmp_path / "dual").eval())
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        one, other = (m.get_image_features(pixels).pooler_output for m in (model, again))
    stored = again.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name]), name
    assert torch.equal(one, other)


@pytest.mark.faults("E8")
def test_a_tower_that_is_not_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="package:efficientnet-lite0"):
        load_vision_tower(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no model directory"):
        load_vision_tower("/no/such/folder")


def test_a_model_without_a_pooled_output_is_refused() -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(ConfigError, match="no pooled output"):
        with_width(ViTModel(config, add_pooling_layer=False))


def test_training_needs_a_pool_with_images(world: Path, tmp_path: Path) -> None:
    from cit_curate.pool.pool import Pool
    from cit_curate.sources.columns import Columns

    table = tmp_path / "captions.csv"
    table.write_text("id,caption\n1,a red disc\n")
    columns = Columns(image_id="id", text=("caption",))
    Pool.build([table], tmp_path / "pool", columns=columns)
    with pytest.raises(ConfigError, match="names no images"):
        open_session(make_config(world, pool=str(tmp_path / "pool")), tmp_path / "run")
