"""Configs read off names and shapes, at the sizes that are published."""

import pytest
import timm
import torch
from transformers import BertConfig, BertModel

from cit_curate.errors import ConfigError
from cit_train.models import AugregConfig, MocoConfig, SwagConfig
from cit_train.models.inferred_config import ARCHITECTURES, infer_text_config, infer_tower_config
from cit_train.models.timm_tower import MocoModel


@pytest.mark.parametrize("name", ARCHITECTURES.values())
@pytest.mark.parametrize("cells", [14, 7])
@pytest.mark.slow
def test_every_known_vit_is_told_by_its_shapes(name: str, cells: int) -> None:
    patch = int(name.split("patch")[1][:2])
    with torch.device("meta"):
        vit = timm.create_model(name, num_classes=9, img_size=cells * patch)
    config = infer_tower_config("augreg", vit.state_dict())
    assert isinstance(config, AugregConfig)
    assert (config.config_name, config.image_size, config.num_classes) == (name, cells * patch, 9)
    assert config.hidden_size == vit.num_features
    swag = infer_tower_config("swag", vit.state_dict())
    assert isinstance(swag, SwagConfig)
    assert swag.architecture == name
    published = {"vit_base_patch16_224": "vit_b16", "vit_large_patch16_224": "vit_l16"}
    assert swag.config_name == {**published, "vit_huge_patch14_224": "vit_h14"}.get(name, name)


def test_mocos_projector_is_read_off_too() -> None:
    with torch.device("meta"):
        model = MocoModel(MocoConfig())
    tensors = {name.removeprefix("moco."): t for name, t in model.state_dict().items()}
    config = infer_tower_config("moco", tensors)
    assert isinstance(config, MocoConfig)
    assert (config.projector_size, config.hidden_size) == (4096, 256)


def test_mocos_small_vit_is_refused_since_no_shape_shows_its_heads() -> None:
    with torch.device("meta"):
        model = MocoModel(MocoConfig(config_name="vit_small_patch16_224"))
    tensors = {name.removeprefix("moco."): t for name, t in model.state_dict().items()}
    with pytest.raises(ConfigError, match="12 heads"):
        infer_tower_config("moco", tensors)


def test_bert_base_is_told_by_its_shapes() -> None:
    with torch.device("meta"):
        bert = BertModel(BertConfig())
    config = infer_text_config(bert.state_dict())
    wanted = BertConfig()
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(config, field) == getattr(wanted, field)
    for field in ("intermediate_size", "max_position_embeddings", "type_vocab_size"):
        assert getattr(config, field) == getattr(wanted, field)


def test_what_is_no_vit_is_said_with_what_was_found() -> None:
    with pytest.raises(ConfigError, match=r"not the tensors of a swag ViT.*found stem, …"):
        infer_tower_config("swag", {"stem": torch.ones(1)})
