"""Every kind of vision tower: its pooled output, its width, and the dual encoder that it makes."""

import json
from pathlib import Path

import pytest
import timm
import torch
from tiny import make_vision_tower
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTModel,
)

from cit_curate.errors import ConfigError, DamagedError
from cit_train.models import AugregConfig, MocoConfig, SwagConfig
from cit_train.models.dual_encoder import build_dual_encoder
from cit_train.models.towers import load_vision_tower
from cit_train.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageStatistics,
    image_statistics,
)

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 32, "patch_size": 8}
OURS = {"config_name": "test_vit", "image_size": 32}
CLIP_VISION = CLIPVisionConfig(**SIZES, **IMAGES, intermediate_size=32)


def timm_config() -> TimmWrapperConfig:
    name = "mobilenetv3_small_050"
    pretrained = timm.get_pretrained_cfg(name).to_dict() | {"input_size": [3, 32, 32]}
    return TimmWrapperConfig(architecture=name, num_labels=0, pretrained_cfg=pretrained)


def clip_model() -> CLIPModel:
    text = CLIPTextConfig(
        **SIZES, intermediate_size=32, vocab_size=20, bos_token_id=0, eos_token_id=1
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=CLIP_VISION.to_dict())
    return CLIPModel(config)


def siglip_model() -> SiglipModel:
    sides = {**SIZES, "intermediate_size": 32}
    return SiglipModel(
        SiglipConfig(text_config={**sides, "vocab_size": 20}, vision_config={**sides, **IMAGES})
    )


MAKERS = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES, **IMAGES, intermediate_size=32)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, **IMAGES)),
    "clip vision": lambda: CLIPVisionModel(CLIP_VISION),
    "clip": clip_model,
    "siglip": siglip_model,
    "timm convnet": lambda: TimmWrapperModel(timm_config()),
    "moco": lambda: AutoModel.from_config(MocoConfig(**OURS, projector_size=32)),
    "augreg": lambda: AutoModel.from_config(AugregConfig(**OURS, num_classes=5)),
    "swag": lambda: AutoModel.from_config(SwagConfig(**OURS)),
}
WIDTHS = {"timm convnet": 1024, "moco": 256, "augreg": 64, "swag": 64}


def make(kind: str) -> PreTrainedModel:
    torch.manual_seed(9)
    return MAKERS[kind]()


def text_tower() -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=30,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=32,
        )
    )


@pytest.mark.parametrize("kind", MAKERS)
@torch.no_grad()
def test_a_tower_of_every_kind_pools_and_its_dual_encoder_reloads_equal(
    kind: str, tmp_path: Path
) -> None:
    make(kind).save_pretrained(tmp_path / "tower")
    tower = load_vision_tower(str(tmp_path / "tower"))
    assert not tower.training
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pooled = tower(pixel_values=pixels).pooler_output
    width = WIDTHS.get(kind, 24)
    assert pooled.shape == (2, width)
    assert tower.config.hidden_size == width
    model = build_dual_encoder(tower, text_tower(), projection_dim=8, seed=0).eval()
    assert model.visual_projection.in_features == width
    model.save_pretrained(tmp_path / "dual")
    again = AutoModel.from_pretrained(tmp_path / "dual").eval()
    given = {"pixel_values": pixels, "input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    one, other = (m(**given).logits_per_image for m in (model, again))
    torch.testing.assert_close(one, other)


@pytest.mark.faults("E9")
@pytest.mark.parametrize("kind", ["vit", "evil"])
def test_code_in_the_folder_of_a_vision_tower_is_never_run(tmp_path: Path, kind: str) -> None:
    folder = make_vision_tower(tmp_path / "tower")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    CLIPImageProcessor().save_pretrained(folder)
    maps = {
        "config.json": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        "preprocessor_config.json": {"AutoImageProcessor": "evil.Processor"},
    }
    for file, auto_map in maps.items():
        values = json.loads((folder / file).read_text())
        values |= {"auto_map": auto_map}
        if file == "config.json":
            values["model_type"] = kind
        (folder / file).write_text(json.dumps(values))
    if kind == "vit":  # transformers' own class of the same model
        assert isinstance(load_vision_tower(str(folder)), ViTModel)
    else:
        with pytest.raises(ConfigError, match="contains custom code"):
            load_vision_tower(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_tower_whose_file_lacks_a_tensor_is_refused_and_not_filled_with_noise(
    tmp_path: Path,
) -> None:
    for kind, lost in (("vit", "pooler.dense.weight"), ("moco", "moco.head.6.weight")):
        model = make(kind)
        state = {name: tensor for name, tensor in model.state_dict().items() if name != lost}
        model.save_pretrained(tmp_path / kind, state_dict=state)
        with pytest.raises(ConfigError, match=f"1 missing: {lost}"):
            load_vision_tower(str(tmp_path / kind))


def test_a_stray_tensor_is_refused_in_our_towers_and_a_classifier_tolerated_in_others(
    tmp_path: Path,
) -> None:
    for kind in ("vit", "swag"):
        model = make(kind)
        state = {**model.state_dict(), "classifier.weight": torch.ones(2, 24)}
        model.save_pretrained(tmp_path / kind, state_dict=state)
    load_vision_tower(str(tmp_path / "vit"))
    with pytest.raises(ConfigError, match=r"1 unexpected: classifier\.weight"):
        load_vision_tower(str(tmp_path / "swag"))


def test_a_text_tower_is_refused_as_a_vision_tower(tmp_path: Path) -> None:
    text_tower().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a bert model does not take images alone"):
        load_vision_tower(str(tmp_path))


def test_a_tower_that_pools_to_a_map_is_refused_with_what_to_take_instead(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"resnet model has no pooled output.*hf://timm/NAME"):
        load_vision_tower(str(tmp_path))


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip"])
def test_images_are_normalised_as_the_tower_was_trained_also_after_reloading(
    kind: str, tmp_path: Path
) -> None:
    make(kind).save_pretrained(tmp_path / "tower")
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    CLIPImageProcessor(image_mean=mean, image_std=std).save_pretrained(tmp_path / "tower")
    tower = load_vision_tower(str(tmp_path / "tower"))
    assert image_statistics(tower.config) == ImageStatistics(mean, std, 32)
    build_dual_encoder(tower, text_tower(), projection_dim=8, seed=0).save_pretrained(
        tmp_path / "dual"
    )
    again = AutoModel.from_pretrained(tmp_path / "dual").config.vision_config
    assert image_statistics(again) == ImageStatistics(mean, std, 32)


def test_a_tower_without_an_image_processor_takes_imagenets_statistics(tmp_path: Path) -> None:
    make("vit").save_pretrained(tmp_path)
    tower = load_vision_tower(str(tmp_path))
    assert image_statistics(tower.config) == ImageStatistics(IMAGENET_MEAN, IMAGENET_STD, 32)


@pytest.mark.faults("E8", "E9")
@pytest.mark.parametrize("weights", ["cut", "pickled"])
def test_weights_that_are_cut_or_pickle_more_than_tensors_are_refused(
    tmp_path: Path, weights: str
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)

    folder = make_vision_tower(tmp_path / "tower")
    path = folder / "model.safetensors"
    if weights == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
        torch.save({"payload": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(DamagedError, match=str(folder)):
        load_vision_tower(str(folder))
    assert not (tmp_path / "ran").exists()
