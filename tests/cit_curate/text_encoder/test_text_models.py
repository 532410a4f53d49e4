"""Families of text models: vectors as transformers gives them, or a refusal by name."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from text_towers import SIZES, TEXTS, VISION, make_tokenizer, save_tower, unit
from transformers import AutoTokenizer, PreTrainedModel

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.load import load_text_tower


def tower_config(folder: Path, pooling: str = "mean", **fields: Any) -> TextTowerConfig:
    return TextTowerConfig(text_encoder=str(folder), pooling=pooling, **fields)  # type: ignore[arg-type]


def one_by_one(model: PreTrainedModel, folder: Path, pooling: str) -> np.ndarray:
    """The vectors that plain transformers give, text by text, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            output = model(input_ids=ids)
        if pooling == "pooler":
            vectors.append(output.pooler_output[0])
        else:
            hidden = output.last_hidden_state[0]
            vectors.append(hidden.mean(dim=0) if pooling == "mean" else hidden[0])
    return np.asarray(unit(torch.stack(vectors)))


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("bert", "pooler"),
        ("roberta", "mean"),
        ("xlm-roberta", "cls"),
        ("electra", "mean"),
        ("mpnet", "pooler"),
        ("mpnet", "mean"),
        ("deberta", "mean"),
        ("deberta-v2", "mean"),
        ("distilbert", "cls"),
        ("albert", "pooler"),
        ("albert", "mean"),
        ("modernbert", "mean"),
        ("gpt2", "mean"),
        ("xlnet", "mean"),
        ("clip_text_model", "pooler"),
        ("clip_text_model", "mean"),
    ],
)
def test_vectors_are_those_of_transformers_without_padding(
    family: str, pooling: str, tmp_path: Path
) -> None:
    model = save_tower(tmp_path, family)
    vectors = TextEncoder.load(tower_config(tmp_path, pooling)).embed(TEXTS)
    np.testing.assert_allclose(vectors, one_by_one(model, tmp_path, pooling), atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
def test_a_t5_is_its_encoder_and_has_no_pooler(family: str, tmp_path: Path) -> None:
    model = save_tower(tmp_path, family)
    vectors = TextEncoder.load(tower_config(tmp_path)).embed(TEXTS)
    np.testing.assert_allclose(vectors, one_by_one(model.encoder, tmp_path, "mean"), atol=1e-5)
    with pytest.raises(ConfigError, match=rf"\({family}\) has no pooler output; .*--pooling mean"):
        load_text_tower(tower_config(tmp_path, "pooler"))


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
@pytest.mark.parametrize("family", ["clip", "metaclip_2"])
def test_a_whole_clip_stands_for_its_text_model(family: str, pooling: str, tmp_path: Path) -> None:
    model = save_tower(tmp_path, family, kind="clip")
    vectors = TextEncoder.load(tower_config(tmp_path, pooling)).embed(TEXTS)
    expected = one_by_one(model.text_model, tmp_path, pooling)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_a_text_half_with_names_of_its_own_is_taken_out_too(tmp_path: Path) -> None:
    model = save_tower(tmp_path, "chinese_clip")
    vectors = TextEncoder.load(tower_config(tmp_path, "cls")).embed(TEXTS)
    np.testing.assert_allclose(vectors, one_by_one(model.text_model, tmp_path, "cls"), atol=1e-5)
    with pytest.raises(ConfigError, match=r"pooler\.dense\.weight.*--pooling"):
        load_text_tower(tower_config(tmp_path, "pooler"))


@pytest.mark.parametrize("family", ["siglip", "siglip_text_model"])
def test_siglip_sees_texts_padded_to_all_positions_without_a_mask(
    family: str, tmp_path: Path
) -> None:
    whole = save_tower(tmp_path, family, projection_size=24)
    model = getattr(whole, "text_model", whole)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoder = TextEncoder.load(tower_config(tmp_path, "pooler"))
    ids = tokenizer(TEXTS, padding="max_length", max_length=64, return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=ids.input_ids)
    assert encoder.dim == 24
    np.testing.assert_allclose(encoder.embed(TEXTS), unit(output.pooler_output), atol=1e-5)
    # The mean is that of a text's own tokens.
    mask = ids.attention_mask[:, :, None]
    mean = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
    own_mean = TextEncoder.load(tower_config(tmp_path, "mean"))
    np.testing.assert_allclose(own_mean.embed(TEXTS), unit(mean), atol=1e-5)
    assert own_mean.fingerprint != encoder.fingerprint


@pytest.mark.parametrize("whole", [False, True])
def test_a_pooler_without_weights_is_refused_and_other_poolings_work(
    whole: bool, tmp_path: Path
) -> None:
    if whole:
        save_tower(tmp_path, "siglip", without="text_model.head.")
        missing = r"head\.bias, head\.weight"
    else:
        save_tower(tmp_path, "roberta", without="pooler.")
        missing = r"pooler\.dense\.bias, pooler\.dense\.weight"
    with pytest.raises(ConfigError, match=rf"{missing}, .*random.*--pooling mean"):
        load_text_tower(tower_config(tmp_path, "pooler"))
    one, other = (TextEncoder.load(tower_config(tmp_path)) for _ in range(2))
    np.testing.assert_array_equal(one.embed(TEXTS), other.embed(TEXTS))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_other_weights_are_never_random(pooling: str, tmp_path: Path) -> None:
    save_tower(tmp_path / "cut", "bert", without="encoder.layer.1.")
    with pytest.raises(
        ConfigError, match=r"do not have encoder\.layer\.1\..* and 12 more, .*random"
    ):
        load_text_tower(tower_config(tmp_path / "cut", pooling))
    save_tower(tmp_path / "table", "bert")
    weights = tmp_path / "table" / "model.safetensors"
    tensors = load_file(weights)
    name = "embeddings.word_embeddings.weight"
    tensors[name] = tensors[name][:-2].clone()
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"{name} \(has .*, needs .*\), which would be random"):
        load_text_tower(tower_config(tmp_path / "table", pooling))


def test_nothing_is_reported_of_weights_that_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tower(tmp_path, "clip")
    load_text_tower(tower_config(tmp_path))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bart", "is an encoder with a decoder"),
        ("vit", "takes pixel_values, not texts"),
        ("clip_vision_model", "takes pixel_values, not texts"),
        ("whisper", "takes input_features, not texts"),
        ("owlvit", "has no text tower"),
    ],
)
def test_a_model_that_is_no_text_tower_is_named_before_its_tokenizer_is_missed(
    family: str, reason: str, tmp_path: Path
) -> None:
    sizes = {"bart": {"d_model": 16}, "whisper": {"d_model": 16}, "owlvit": {}}
    config = transformers.CONFIG_MAPPING[family](**sizes.get(family, VISION))
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"\({family}\) {reason}.*RoBERTa.*package:minilm"):
        load_text_tower(tower_config(tmp_path))


def test_a_half_with_other_names_says_to_save_the_text_model(tmp_path: Path) -> None:
    save_tower(tmp_path, "siglip")
    weights = tmp_path / "model.safetensors"
    tensors = {f"inner.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"text model of this siglip with save_pretrained"):
        load_text_tower(tower_config(tmp_path))


def test_a_folder_without_a_config_is_named_with_the_one_inside(tmp_path: Path) -> None:
    save_tower(tmp_path / "0_Transformer", "bert")
    with pytest.raises(ConfigError, match=r"has no config\.json; its folder 0_Transformer has one"):
        load_text_tower(tower_config(tmp_path))
    load_text_tower(tower_config(tmp_path / "0_Transformer"))


def test_a_config_with_impossible_values_is_an_error_of_the_folder(tmp_path: Path) -> None:
    save_tower(tmp_path, "bert")
    file = tmp_path / "config.json"
    for change in ({"num_attention_heads": 5}, {"hidden_act": "nonsense"}, {"hidden_size": "wide"}):
        saved = file.read_text()
        file.write_text(json.dumps(json.loads(saved) | change))
        with pytest.raises(ConfigError, match=rf"--text-encoder {tmp_path}"):
            load_text_tower(tower_config(tmp_path))
        file.write_text(saved)


@pytest.mark.parametrize(
    ("own", "note"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, ""),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "--pooling cls"),
        ({"pooling_mode": "cls"}, "made for cls pooling, not for --pooling mean"),
        ({"pooling_mode_max_tokens": True}, "made for max_tokens pooling"),
    ],
)
def test_a_pooling_other_than_sentence_transformers_own_is_said(
    own: dict[str, object], note: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tower(tmp_path, "bert")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(own))
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with caplog.at_level(logging.WARNING):
        load_text_tower(tower_config(tmp_path))
    assert note in caplog.text
    assert bool(caplog.records) == bool(note)


def test_a_dense_layer_of_sentence_transformers_is_said_to_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tower(tmp_path, "bert")
    module = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    load_text_tower(tower_config(tmp_path))
    assert "2_Dense" in caplog.text


@pytest.mark.parametrize("modules", [{"a": 1}, ["a"], [{}], []])
def test_another_modules_json_is_none_of_ours(modules: object, tmp_path: Path) -> None:
    save_tower(tmp_path, "bert")
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    load_text_tower(tower_config(tmp_path))


@pytest.mark.parametrize("config", [[], "bert", {}, {"model_type": "nobodys"}])
def test_a_config_of_no_model_is_an_error_of_the_folder(config: object, tmp_path: Path) -> None:
    save_tower(tmp_path, "bert")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"--text-encoder {tmp_path} cannot be loaded") as caught:
        load_text_tower(tower_config(tmp_path))
    assert len(str(caught.value)) < 600


def test_the_text_half_of_an_unconverted_dual_encoder_is_taken_out(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bert")
    text = transformers.BertConfig(vocab_size=len(tokenizer), **SIZES)
    vision = transformers.CLIPVisionConfig(**VISION)
    torch.manual_seed(1)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text)
    model = transformers.VisionTextDualEncoderModel(config).eval()
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    tokenizer.save_pretrained(tmp_path)
    vectors = TextEncoder.load(tower_config(tmp_path, "pooler")).embed(TEXTS)
    expected = one_by_one(model.text_model, tmp_path, "pooler")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
