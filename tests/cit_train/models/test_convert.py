"""`cit convert`: what it writes is what was given, and loads everywhere."""

import json
from pathlib import Path

import pytest
import timm
import torch
from foreign_files import FULL, MocoVit, PlainDualEncoder, Sizes, inputs
from safetensors.torch import save_file
from tiny import make_text_tower
from torch import Tensor
from torchvision.models import VisionTransformer as TorchvisionVit
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from cit_curate.errors import ConfigError, DamagedError, NotFiniteError
from cit_train.cli import run
from cit_train.models import convert, inferred_config
from cit_train.models.convert import convert_checkpoint, convert_tower
from cit_train.models.load import load_dual_encoder
from cit_train.models.towers import load_vision_tower

TINY = Sizes()


@pytest.fixture(autouse=True)
def known_tiny_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest of timm's ViTs be told by its shapes, as the published ones are."""
    monkeypatch.setitem(inferred_config.ARCHITECTURES, (64, 16, 6), "test_vit")


def moco_file(path: Path, sizes: Sizes = TINY) -> MocoVit:
    """As MoCo-v3's training leaves it."""
    torch.manual_seed(6)
    plain = MocoVit(sizes)
    tensors: dict[str, Tensor] = {}
    for name, tensor in plain.named_tensors().items():
        tensors[f"module.base_encoder.{name}"] = tensor
        tensors[f"module.momentum_encoder.{name}"] = tensor.clone()
    tensors["module.predictor.0.weight"] = torch.ones(4, 256)
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": tensors, "scaler": {}}, path)
    return plain


def augreg_vit(num_classes: int = 13) -> torch.nn.Module:
    torch.manual_seed(7)
    return timm.create_model(
        TINY.architecture, img_size=32, num_classes=num_classes, global_pool="token"
    ).eval()


def swag_vit() -> TorchvisionVit:
    torch.manual_seed(8)
    return TorchvisionVit(
        image_size=32, patch_size=16, num_layers=6, num_heads=2, hidden_dim=64, mlp_dim=192
    ).eval()


def swag_tensors(vit: TorchvisionVit) -> dict[str, Tensor]:
    """Under SWAG's own names, with the classifier of a fine-tuned model."""
    tensors = {"head.layers.head.weight": torch.ones(3, 64)}
    for name, tensor in vit.state_dict().items():
        if not name.startswith("heads."):
            name = name.replace("encoder_layer_", "layer_")
            name = name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
            tensors[name] = tensor.transpose(0, 1) if "pos_embedding" in name else tensor
    return tensors


def read_processor(folder: Path) -> dict[str, object]:
    AutoImageProcessor.from_pretrained(folder)
    return json.loads((folder / "preprocessor_config.json").read_text())


@torch.no_grad()
def test_moco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = moco_file(tmp_path / "vit-b-300ep.pth.tar")
    out = tmp_path / "moco"
    run(["convert", "moco", str(tmp_path / "vit-b-300ep.pth.tar"), str(out)])
    said = " ".join(capsys.readouterr().out.split())
    assert "moco, test_vit, 32 pixels, pooled output of 256, 94 tensors" in said
    assert "left out of the source's tensors: 95 (module.momentum_encoder." in said
    tower = load_vision_tower(str(out))
    assert tower.config.hidden_size == 256
    pixels = inputs(TINY)["pixel_values"]
    torch.testing.assert_close(
        tower(pixel_values=pixels).pooler_output, plain(pixels), rtol=1e-4, atol=1e-5
    )
    processor = read_processor(out)
    assert processor["image_mean"] == [0.485, 0.456, 0.406]
    assert processor["crop_size"] == {"height": 32, "width": 32}
    assert processor["size"] == {"shortest_edge": round(32 * 256 / 224)}
    assert processor["resample"] == 2
    assert sorted(p.name for p in out.iterdir()) == [
        *("config.json", "model.safetensors", "preprocessor_config.json")
    ]


@pytest.mark.parametrize("form", ["model.safetensors", "weights.pth", "folder"])
@torch.no_grad()
def test_augreg(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    vit = augreg_vit()
    source = tmp_path / form
    if form == "weights.pth":
        torch.save(vit.state_dict(), source)
    elif form == "folder":
        source.mkdir()
        torch.save(vit.state_dict(), source / "pytorch_model.bin")
    else:
        save_file(vit.state_dict(), source)
    run(["convert", "augreg", str(source), str(tmp_path / "out"), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["architecture"] == "test_vit"
    assert said["left_out"] == []
    tower = load_vision_tower(str(tmp_path / "out"))
    assert torch.equal(tower.augreg.head.weight, vit.head.weight)
    pixels = inputs(TINY)["pixel_values"]
    torch.testing.assert_close(
        tower(pixel_values=pixels).pooler_output,
        vit.forward_features(pixels)[:, 0],
        rtol=1e-4,
        atol=1e-5,
    )
    assert read_processor(tmp_path / "out")["image_mean"] == [0.5, 0.5, 0.5]
    assert read_processor(tmp_path / "out")["image_std"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("names", ["swag", "torchvision"])
@torch.no_grad()
def test_swag(tmp_path: Path, names: str) -> None:
    vit = swag_vit()
    torch.save(swag_tensors(vit) if names == "swag" else vit.state_dict(), tmp_path / "vit.torch")
    done = convert_tower("swag", str(tmp_path / "vit.torch"), tmp_path / "out")
    classifier = ("head.layers.head.weight",) if names == "swag" else ("heads.head.weight",)
    assert done.left_out[:1] == classifier
    assert (done.architecture, done.pooled_size) == ("test_vit", 64)
    tower = load_vision_tower(str(tmp_path / "out"))
    pixels = inputs(TINY)["pixel_values"]
    vit.heads = torch.nn.Identity()
    torch.testing.assert_close(
        tower(pixel_values=pixels).pooler_output, vit(pixels), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.slow
def test_a_checkpoint_becomes_a_directory_that_automodel_and_its_processor_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = PlainDualEncoder(Sizes())
    source = plain.save_released(tmp_path / "released")
    text = make_text_tower(tmp_path / "text")
    out = tmp_path / "out"
    run(["convert", "checkpoint", str(source), str(out), "--tokenizer", str(text), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["left_out"] == ["text_model.embeddings.position_ids"]
    assert said["tokenizer"] is True
    assert not (out / "pytorch_model.bin").exists()
    given = inputs(Sizes())
    model = AutoModel.from_pretrained(out).eval()
    cosines = model(**given).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(cosines, plain.cosines(**given), rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(out)("red disc")["input_ids"] == [2, 5, 9, 3]
    assert load_dual_encoder(out)[1].model_max_length == 32
    assert read_processor(out)["crop_size"] == {"height": 32, "width": 32}


def test_without_a_tokenizer_the_directory_says_so_and_loads_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = PlainDualEncoder(TINY).save_training(tmp_path / "checkpoint-best.pth")
    run(["convert", "checkpoint", str(source), str(tmp_path / "out")])
    assert "it has no tokenizer: convert again" in capsys.readouterr().err
    text = make_text_tower(tmp_path / "text")
    load_dual_encoder(tmp_path / "out", tokenizer=str(text))
    with pytest.raises(ConfigError, match="no tokenizer"):
        load_dual_encoder(tmp_path / "out")


# What is refused


def test_moco_tensors_that_are_missing_unexpected_or_misshaped_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "moco.pth"
    moco_file(path)
    content = torch.load(path, weights_only=True)
    tensors = content["state_dict"]
    del tensors["module.base_encoder.norm.bias"]
    tensors["module.base_encoder.extra"] = torch.ones(1)
    tensors["module.base_encoder.head.7.running_mean"] = torch.ones(255)
    torch.save(content, path)
    with pytest.raises(ConfigError) as caught:
        convert_tower("moco", str(path), tmp_path / "out")
    assert (
        "1 missing: moco.norm.bias; 1 unexpected: moco.extra; "
        "1 misshaped: moco.head.7.running_mean (255,) instead of (256,)" in str(caught.value)
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moco.pth"]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.encoder_q.fc.weight": torch.ones(1)}}, tmp_path / "v2.pth")
    with pytest.raises(ConfigError, match="not a checkpoint of MoCo-v3 ViT: it has module"):
        convert_tower("moco", str(tmp_path / "v2.pth"), tmp_path / "out")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    for family in ("augreg", "swag"):
        with pytest.raises(ConfigError, match=f"not the tensors of a {family} ViT"):
            convert_tower(family, str(tmp_path / "resnet.pth"), tmp_path / "out")
    # AugReg's file fits SWAG's tower, which normalises images otherwise.
    torch.save(augreg_vit().state_dict(), tmp_path / "augreg.pth")
    with pytest.raises(ConfigError, match=r"timm's names, not SWAG's.*cit convert augreg"):
        convert_tower("swag", str(tmp_path / "augreg.pth"), tmp_path / "out")


def test_timm_weights_that_the_hubs_cache_has_need_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(augreg_vit().state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def cached(name: str) -> Path:
        asked.append(name)
        return tmp_path

    monkeypatch.setattr(convert, "hub_folder", cached)
    convert_tower("augreg", "timm:vit_base_patch16_224", tmp_path / "out")
    assert asked == ["timm/vit_base_patch16_224.augreg_in21k"]


def test_names_that_need_the_network_say_what_to_do_without_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch hub name, whose code is not run.*cit pull"):
        convert_tower("swag", "vit_b16", tmp_path / "out")
    with pytest.raises(ConfigError, match="is not a file; fetch the weights with `cit pull`"):
        convert_tower("moco", "vit-b-300ep.pth.tar", tmp_path / "out")
    for name in ("timm:vit_base_patch16_224", "vit_base_patch32_224"):
        with pytest.raises(ConfigError, match=r"not in the hub's cache.*model\.safetensors"):
            convert_tower("augreg", name, tmp_path / "out")


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="already exists"):
        convert_tower("moco", "any", tmp_path / "out")
    with pytest.raises(ConfigError, match="already exists"):
        convert_checkpoint(tmp_path / "any", tmp_path / "out")


def test_weights_that_are_not_finite_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    tensors = augreg_vit().state_dict()
    tensors["norm.bias"][0] = float("nan")
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(NotFiniteError, match="weights are broken"):
        convert_tower("augreg", str(tmp_path / "nan.pth"), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nan.pth"]


@pytest.mark.faults("K6")
def test_a_payload_ends_with_exit_code_4_and_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": {"module.base_encoder.norm.bias": Payload()}}, tmp_path / "bad.pth")
    for verb in ("moco", "augreg", "swag", "checkpoint"):
        with pytest.raises(DamagedError, match="refused") as caught:
            run(["convert", verb, str(tmp_path / "bad.pth"), str(tmp_path / "out")])
        assert caught.value.exit_code == 4
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
@torch.no_grad()
def test_moco_at_full_size(tmp_path: Path) -> None:
    plain = moco_file(tmp_path / "vit-b-300ep.pth.tar", FULL)
    done = convert_tower("moco", str(tmp_path / "vit-b-300ep.pth.tar"), tmp_path / "out")
    assert (done.architecture, done.image_size) == ("vit_base_patch16_224", 224)
    tower = load_vision_tower(str(tmp_path / "out"))
    pixels = inputs(FULL, batch=2)["pixel_values"]
    torch.testing.assert_close(
        tower(pixel_values=pixels).pooler_output, plain(pixels), rtol=1e-4, atol=1e-4
    )
    assert read_processor(tmp_path / "out")["size"] == {"shortest_edge": 256}
