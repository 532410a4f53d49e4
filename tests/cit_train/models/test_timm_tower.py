"""The three model types: names, shapes, pooled outputs, and what never trains."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from foreign_files import MocoVit, Sizes
from torchvision.models import VisionTransformer as TorchvisionVit
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from cit_curate.errors import ConfigError
from cit_train.models import (
    AugregConfig,
    AugregModel,
    MocoConfig,
    MocoModel,
    SwagConfig,
    SwagModel,
    TimmTowerModel,
)
from cit_train.models.dual_encoder import build_dual_encoder
from cit_train.models.swag_names import rename_to_timm
from cit_train.models.timm_tower import TimmTowerConfig, position_table
from cit_train.transforms import image_statistics

# Of 64 dimensions, 6 blocks and 2 heads, with patches of 16.
TINY = {"config_name": "test_vit", "image_size": 32}
CONFIGS = {
    "moco": MocoConfig(**TINY, projector_size=48),
    "augreg": AugregConfig(**TINY, num_classes=11),
    "swag": SwagConfig(**TINY),
}
each_family = pytest.mark.parametrize("family", CONFIGS)


def tower(family: str) -> TimmTowerModel:
    torch.manual_seed(1)
    return AutoModel.from_config(CONFIGS[family]).eval()


def pixels(batch: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(2))


def on_meta(config: TimmTowerConfig, model: type[TimmTowerModel]) -> dict[str, tuple[int, ...]]:
    """Names and shapes at full size, without memory for them."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in model(config).state_dict().items()}


def vit_on_meta(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0).state_dict()


@each_family
@torch.no_grad()
def test_the_pooled_output_is_the_head_of_the_frozen_features(family: str) -> None:
    model = tower(family)
    output = model(pixel_values=pixels())
    frozen = model.frozen_features(pixels())
    assert output.last_hidden_state.shape == (2, 5, 64)
    assert frozen.shape == (2, 64)
    assert output.pooler_output.shape == (2, model.config.hidden_size)
    if model.has_trainable_head:
        assert model.head is model.moco.head
        assert torch.equal(output.pooler_output, model.head(frozen))
    else:
        assert model.head is None
        assert torch.equal(output.pooler_output, frozen)


@each_family
@torch.no_grad()
def test_a_dual_encoder_with_it_saves_and_reloads_with_automodel(
    family: str, tmp_path: Path
) -> None:
    text = BertModel(
        BertConfig(
            vocab_size=30,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=32,
        )
    )
    model = build_dual_encoder(tower(family), text, projection_dim=8, seed=0).eval()
    model.save_pretrained(tmp_path / "dual")
    again, info = AutoModel.from_pretrained(tmp_path / "dual", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(again.vision_model) is type(model.vision_model)
    assert again.config.vision_config.hidden_size == model.config.vision_config.hidden_size
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    given = {"pixel_values": pixels(), "input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    one, other = (m.eval()(**given).logits_per_image for m in (model, again))
    torch.testing.assert_close(one, other)


@each_family
def test_a_tuple_comes_out_where_one_is_asked_for_and_attentions_do_not(family: str) -> None:
    model = tower(family)
    tokens, pooled = model(pixels(), return_dict=False)
    assert (tokens.shape[0], pooled.shape[0]) == (2, 2)
    with pytest.raises(ValueError, match="attentions"):
        model(pixels(), output_attentions=True)


@torch.no_grad()
def test_moco_equals_timms_vit_and_a_plain_projector() -> None:
    torch.manual_seed(3)
    plain = MocoVit(Sizes(projector=48))
    model = tower("moco")
    model.moco.load_state_dict(plain.named_tensors())
    torch.testing.assert_close(model(pixels()).pooler_output, plain(pixels()))


def test_moco_has_the_originals_names_and_shapes_at_full_size() -> None:
    # docs/method.md, "Encoders"
    vit = vit_on_meta("vit_base_patch16_224")
    expected = {f"moco.{name}": tuple(tensor.shape) for name, tensor in vit.items()}
    for number, shape in {0: (4096, 768), 3: (4096, 4096), 6: (256, 4096)}.items():
        expected[f"moco.head.{number}.weight"] = shape
    for number, width in {1: 4096, 4: 4096, 7: 256}.items():
        affine = () if number == 7 else ("weight", "bias")
        for name in (*affine, "running_mean", "running_var"):
            expected[f"moco.head.{number}.{name}"] = (width,)
        expected[f"moco.head.{number}.num_batches_tracked"] = ()
    assert on_meta(MocoConfig(), MocoModel) == expected


@pytest.mark.parametrize(
    ("name", "width", "blocks"),
    [
        ("vit_base_patch32_224", 768, 12),
        ("vit_base_patch16_224", 768, 12),
        ("vit_large_patch16_224", 1024, 24),
    ],
)
def test_augreg_has_timms_names_and_the_unused_classifier(
    name: str, width: int, blocks: int
) -> None:
    config = AugregConfig(config_name=name)
    vit = vit_on_meta(name)
    expected = {f"augreg.{key}": tuple(tensor.shape) for key, tensor in vit.items()}
    expected |= {"augreg.head.weight": (21843, width), "augreg.head.bias": (21843,)}
    assert on_meta(config, AugregModel) == expected
    assert f"augreg.blocks.{blocks - 1}.norm1.weight" in expected
    assert config.hidden_size == width


@pytest.mark.parametrize(
    ("name", "width"), [("vit_b16", 768), ("vit_l16", 1024), ("vit_h14", 1280)]
)
def test_swag_has_its_three_sizes(name: str, width: int) -> None:
    config = SwagConfig(config_name=name)
    assert config.hidden_size == width
    patch = int(name[-2:])
    assert on_meta(config, SwagModel)["swag.patch_embed.proj.weight"] == (width, 3, patch, patch)


def test_a_config_with_nothing_but_its_type_is_the_released_models() -> None:
    config = AutoConfig.for_model("moco")
    assert (config.config_name, config.image_size) == ("vit_base_patch16_224", 224)
    assert (config.hidden_size, config.projector_size) == (256, 4096)
    assert AutoConfig.for_model("swag").config_name == "vit_b16"
    assert AutoConfig.for_model("augreg").num_classes == 21843


def test_every_name_that_the_original_wrote_is_built() -> None:
    written = [
        ("moco", "vit_base_patch16", "vit_base_patch16_224", 256),
        ("augreg", "vit_base_patch32_224_in21k", "vit_base_patch32_224", 768),
        ("augreg", "vit_base_patch16_224_in21k", "vit_base_patch16_224", 768),
        ("augreg", "vit_large_patch16_224_in21k", "vit_large_patch16_224", 1024),
        ("swag", "vit_b16", "vit_base_patch16_224", 768),
        ("swag", "vit_l16", "vit_large_patch16_224", 1024),
        ("swag", "vit_h14", "vit_huge_patch14_224", 1280),
    ]
    for family, name, architecture, pooled in written:
        config = AutoConfig.for_model(family, config_name=name)
        given = AutoConfig.for_model(family, config_name=name, hidden_size=pooled)
        assert config.to_dict() == given.to_dict()
        assert (config.architecture, config.hidden_size) == (architecture, pooled), name
        with torch.device("meta"):
            model = AutoModel.from_config(config).eval()
            vit = getattr(model, family)
            vit.blocks = vit.blocks[:1]  # all that follow take the same shapes
            output = model(torch.empty(1, 3, 224, 224))
        assert output.pooler_output.shape == (1, pooled), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch17", "timm has no ViT 'vit_base_patch17'; did you mean 'vit_base_patch16'"),
        ("vit_small_patch16", "'vit_small_patch16': MoCo-v3's small ViT has 12 heads.*has 6"),
        ("vit_conv_small", "'vit_conv_small': MoCo-v3's small ViT has 12 heads"),
    ],
)
def test_a_moco_that_cannot_be_built_is_refused_by_name(name: str, message: str) -> None:
    for fields in ({}, {"hidden_size": 256}):
        config = MocoConfig(config_name=name, **fields)
        with pytest.raises(ConfigError, match=message), torch.device("meta"):
            AutoModel.from_config(config)


def test_mocos_name_of_its_base_vit_is_mocos_alone() -> None:
    with pytest.raises(ConfigError, match=r"augreg tower: timm has no ViT 'vit_base_patch16'"):
        AugregConfig(config_name="vit_base_patch16")


def test_a_copy_takes_swags_names_too() -> None:
    own = {f"swag.{name}": tensor for name, tensor in swags_own(torchvision_vit()).items()}
    model = copy.deepcopy(tower("swag"))
    model.load_state_dict(own)
    assert torch.equal(model.swag.cls_token, own["swag.class_token"])


def test_what_must_not_train_is_no_parameter() -> None:
    moco, augreg = tower("moco").requires_grad_(True), tower("augreg").requires_grad_(True)
    assert "moco.pos_embed" not in dict(moco.named_parameters())
    assert not moco.moco.pos_embed.requires_grad
    assert {name for name, _ in moco.head.named_parameters()} == {
        *("0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "6.weight")
    }
    assert not [name for name, _ in augreg.named_parameters() if "head" in name]
    assert augreg.augreg.head.weight.shape == (11, 64)


def test_mocos_positions_are_sines_and_cosines_of_row_and_column() -> None:
    table = position_table(2, 8)
    assert table.shape == (1, 5, 8)
    assert not table[0, 0].any()
    # Frequencies 10000^0 = 1 and 10000^(-1/2) = 0.01; the row first, then the column.
    at_0, at_1 = [0, 0, 1, 1], [0.841471, 0.0099998, 0.540302, 0.99995]
    for place, wanted in enumerate([at_0 + at_0, at_0 + at_1, at_1 + at_0, at_1 + at_1], start=1):
        torch.testing.assert_close(
            table[0, place], torch.tensor(wanted, dtype=torch.float32), rtol=0, atol=1e-6
        )
    assert torch.equal(tower("moco").moco.pos_embed, position_table(2, 64))


def test_a_moco_tower_that_lacks_its_positions_gets_them_computed(tmp_path: Path) -> None:
    model = tower("moco")
    state = model.state_dict()
    del state["moco.pos_embed"]
    model.save_pretrained(tmp_path, state_dict=state)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.moco.pos_embed, position_table(2, 64))


@pytest.mark.faults("E9")
@pytest.mark.parametrize("name", ["vit_base_patch16_225", "hf-hub:some/model", "resnet18", "../x"])
def test_only_timms_own_vits_are_built(name: str) -> None:
    with pytest.raises(ConfigError, match="timm has no ViT"):
        MocoModel(MocoConfig(config_name=name))


def test_a_width_that_is_not_the_architectures_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_size is 768, but test_vit is 64"):
        SwagModel(SwagConfig(**TINY, hidden_size=768))


def test_the_towers_own_normalisation_is_used() -> None:
    assert image_statistics(CONFIGS["augreg"]) == ((0.5,) * 3, (0.5,) * 3, 32)
    for family in ("moco", "swag"):
        assert image_statistics(CONFIGS[family]).mean == (0.485, 0.456, 0.406)


# SWAG's own names


def torchvision_vit() -> TorchvisionVit:
    torch.manual_seed(4)
    vit = TorchvisionVit(
        image_size=32, patch_size=16, num_layers=6, num_heads=2, hidden_dim=64, mlp_dim=192
    )
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    vit.heads = torch.nn.Identity()
    return vit.eval()


def swags_own(vit: TorchvisionVit) -> dict[str, torch.Tensor]:
    """Torchvision's tensors as SWAG itself publishes them."""
    published = {}
    for name, tensor in vit.state_dict().items():
        name = name.replace("encoder_layer_", "layer_")
        name = name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
        published[name] = tensor.transpose(0, 1) if "pos_embedding" in name else tensor
    return published


@pytest.mark.parametrize("published", ["swag", "torchvision"])
@torch.no_grad()
def test_swag_equals_torchvisions_vit_under_both_names(published: str) -> None:
    vit = torchvision_vit()
    tensors = swags_own(vit) if published == "swag" else vit.state_dict()
    model = tower("swag")
    model.swag.load_state_dict(rename_to_timm(tensors))
    torch.testing.assert_close(model(pixels()).pooler_output, vit(pixels()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_swags_own_names_load_with_pytorch_and_with_transformers_and_are_what_is_saved(
    tmp_path: Path,
) -> None:
    own = {f"swag.{name}": tensor for name, tensor in swags_own(torchvision_vit()).items()}
    assert own["swag.encoder.pos_embedding"].shape == (5, 1, 64)
    model = tower("swag")
    model.load_state_dict(own)
    model.save_pretrained(tmp_path / "saved")
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)
    again = AutoModel.from_pretrained(tmp_path / "saved").eval()
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())
    torch.testing.assert_close(again(pixels()).pooler_output, model(pixels()).pooler_output)
    assert rename_to_timm(model.state_dict(), prefix="swag.").keys() == model.state_dict().keys()
