"""What is refused of a text tower before anything long runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_towers import make_tokenizer, save_tokenizer, save_tower

from cit_curate.config import TextTowerConfig
from cit_curate.errors import ConfigError
from cit_curate.text_encoder.checks import check_positions, num_positions
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.load import load_text_tower


def tower_config(folder: Path, pooling: str = "mean", **fields: Any) -> TextTowerConfig:
    return TextTowerConfig(text_encoder=str(folder), pooling=pooling, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "table", "positions"),
    [
        ("bert", 48, 48),
        ("roberta", 48, 46),  # its padding id is 1, and it counts from 2
        ("mpnet", 48, 46),
        ("clip_text_model", 21, 21),
        ("clip", 77, 77),
        ("siglip", 24, 24),
        ("gpt2", 48, 48),
        ("distilbert", 48, 48),
        ("opt", 48, 48),
        ("deberta-v2", 48, 48),
    ],
)
def test_more_tokens_than_positions_are_refused_with_the_most_that_go(
    family: str, table: int, positions: int, tmp_path: Path
) -> None:
    model = save_tower(tmp_path, family, max_position_embeddings=table)
    most = positions // 4 * 4
    with pytest.raises(
        ConfigError,
        match=rf"positions for {positions} tokens, .*--max-text-length {most + 4}; .* {most}$",
    ):
        load_text_tower(tower_config(tmp_path, max_text_length=most + 4))
    tower, _ = load_text_tower(tower_config(tmp_path, max_text_length=most))
    assert num_positions(tower) == positions
    longest = torch.randint(4, 9, (1, most))
    assert tower(input_ids=longest).pooler_output.isfinite().all()
    del model


@pytest.mark.parametrize("family", ["t5", "modernbert", "xlnet"])
def test_relative_positions_have_no_limit(family: str, tmp_path: Path) -> None:
    save_tower(tmp_path, family)
    tower, _ = load_text_tower(tower_config(tmp_path, max_text_length=512))
    assert num_positions(tower) is None
    check_positions(tower, 100_000, subject="x")


def test_a_length_that_is_padded_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    save_tower(tmp_path, "clip_text_model", max_position_embeddings=21)
    tower, _ = load_text_tower(tower_config(tmp_path, max_text_length=20))
    check_positions(tower, 20, subject="x")
    with pytest.raises(ConfigError, match="at most --max-text-length 20"):
        check_positions(tower, 21, subject="x")


def test_a_tokenizer_with_more_tokens_than_the_tower_is_refused(tmp_path: Path) -> None:
    save_tower(tmp_path, "bert")
    make_tokenizer("bert", words=[f"word{n}" for n in range(100)]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"its tokenizer has 104 tokens, its text tower \d+; "):
        load_text_tower(tower_config(tmp_path))


def test_a_larger_table_than_the_tokenizers_is_fine(tmp_path: Path) -> None:
    save_tower(tmp_path, "bert", vocab_size=64)
    load_text_tower(tower_config(tmp_path))


@pytest.mark.parametrize("family", ["gpt2", "clip_text_model", "opt"])
def test_the_first_token_of_a_tower_that_reads_in_one_direction_is_no_vector_of_a_text(
    family: str, tmp_path: Path
) -> None:
    save_tower(tmp_path, family)
    with pytest.raises(ConfigError, match=r"do not depend on the end of a text.*--pooling mean"):
        load_text_tower(tower_config(tmp_path, "cls"))


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_a_clip_whose_tokenizer_adds_no_end_token_is_refused(kind: str, tmp_path: Path) -> None:
    save_tower(tmp_path, "clip_text_model", kind=kind, eos_token_id=3 if kind == "gpt" else 0)
    with pytest.raises(ConfigError, match=r"do not depend on the end of a text"):
        load_text_tower(tower_config(tmp_path, "pooler"))
    load_text_tower(tower_config(tmp_path, "mean"))


def test_a_family_whose_vectors_depend_on_padding_is_refused(tmp_path: Path) -> None:
    save_tower(tmp_path, "fnet")
    with pytest.raises(ConfigError, match=r"\(fnet\) cannot be used .* depend on the padding"):
        load_text_tower(tower_config(tmp_path))


def test_a_model_without_token_vectors_cannot_pool_them(tmp_path: Path) -> None:
    save_tower(tmp_path, "dpr")
    with pytest.raises(ConfigError, match=r"\(dpr\) cannot be used as a text tower"):
        load_text_tower(tower_config(tmp_path))


def test_a_tokenizer_of_special_tokens_alone_is_refused(tmp_path: Path) -> None:
    save_tower(tmp_path, "bert")
    make_tokenizer("bert", words=[]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="its tokenizer has 0 words"):
        load_text_tower(tower_config(tmp_path))


def test_a_small_vocabulary_does_for_packed_passes(tmp_path: Path) -> None:
    words = ["lamp", "of", "bell", "wet"]
    tokenizer = make_tokenizer("bert", words=words)
    save_tower(tmp_path, "bert", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    assert TextEncoder.load(tower_config(tmp_path)).embed(words).shape == (4, 32)


def test_broken_weights_pass_the_checks_and_name_the_caption_later(tmp_path: Path) -> None:
    save_tower(tmp_path, "bert")
    weights = tmp_path / "model.safetensors"
    tensors = {name: tensor * float("nan") for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    load_text_tower(tower_config(tmp_path))


def test_a_tokenizer_made_for_shorter_texts_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tower(tmp_path, "bert")
    save_tokenizer(tmp_path, "bert", model_max_length=12)
    load_text_tower(tower_config(tmp_path, max_text_length=12))
    assert not caplog.records
    load_text_tower(tower_config(tmp_path, max_text_length=16))
    assert "12 tokens (model_max_length)" in caplog.text
