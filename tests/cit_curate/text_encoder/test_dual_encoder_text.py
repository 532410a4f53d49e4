"""The text side of a saved dual encoder, as the text tower of a curation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.text_encoder.dual_encoder_text import (
    dual_encoder_folder,
    load_text_projection,
    load_text_side,
)
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.packaged import packaged_folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dual encoder whose vision tower is of a type that nobody has registered."""
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BertModel(BertConfig(**tiny, intermediate_size=16, vocab_size=30_522))
    vision = ViTModel(ViTConfig(**tiny, intermediate_size=16, image_size=16, patch_size=8))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=8
    )
    model = VisionTextDualEncoderModel(config=config, vision_model=vision, text_model=text)
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "last"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((packaged_folder("minilm") / name).read_bytes())
    described = json.loads((folder / "config.json").read_text())
    described["vision_config"]["model_type"] = "somebody-elses"
    (folder / "config.json").write_text(json.dumps(described))
    return folder.parents[1]


def test_a_run_stands_for_its_checkpoint_and_other_folders_for_nothing(
    saved: Path, tmp_path: Path
) -> None:
    assert dual_encoder_folder(saved) == saved / "checkpoints" / "last"
    assert dual_encoder_folder(saved / "checkpoints" / "last") is not None
    assert dual_encoder_folder(packaged_folder("minilm")) is None
    assert dual_encoder_folder(tmp_path) is None


def test_a_trained_text_tower_curates_before_or_after_its_projection(saved: Path) -> None:
    config = TextTowerConfig(text_encoder=str(saved))
    plain = TextEncoder.load(config)
    projected = TextEncoder.load(TextTowerConfig(text_encoder=str(saved), project_embeddings=True))
    assert (plain.dim, projected.dim) == (16, 8)
    weight = load_text_projection(str(saved)).weight.detach().numpy()
    expected = plain.embed(["a cat"]) @ weight.T
    vectors = projected.embed(["a cat"])
    assert np.allclose(vectors, expected / np.linalg.norm(expected), atol=1e-6)


def test_the_projection_comes_from_the_hub_like_the_tower(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved / "checkpoints" / "last"
    monkeypatch.setattr("cit_curate.text_encoder.load.hub_folder", lambda name: folder)
    config = TextTowerConfig(text_encoder="hf://org/name", project_embeddings=True)
    assert TextEncoder.load(config).dim == 8


def test_a_tower_by_itself_has_no_projection() -> None:
    config = TextTowerConfig(text_encoder="package:minilm", project_embeddings=True)
    with pytest.raises(ConfigError, match="without a projection"):
        TextEncoder.load(config)


def test_weights_that_are_cut_are_refused(saved: Path, tmp_path: Path) -> None:
    source = saved / "checkpoints" / "last"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(DamagedError, match="not the dual encoder"):
            load_text_side(tmp_path)
