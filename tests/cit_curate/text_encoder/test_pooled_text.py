"""Wrapped text towers: padded to one length, saved, and loaded again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from text_towers import TEXTS, save_tokenizer, save_tower, unit
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cit_curate.config import TextTowerConfig
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.load import load_text_tower
from cit_curate.text_encoder.pooled_text import PaddedTextModel
from cit_curate.text_encoder.tokenizer import tokenize


def load(
    folder: Path, pooling: str, *, max_text_length: int = 16
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_text_tower(
        TextTowerConfig(
            text_encoder=str(folder),
            pooling=pooling,  # type: ignore[arg-type]
            max_text_length=max_text_length,
        )
    )


@pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_on_the_side_of_the_tokenizer(
    side: str, pooling: str, tmp_path: Path
) -> None:
    model = save_tower(tmp_path, "siglip", max_position_embeddings=16).text_model
    tokenizer = save_tokenizer(tmp_path, "end", padding_side=side)
    ids = tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=ids.input_ids)
    hidden, is_token = output.last_hidden_state, ids.attention_mask.bool()
    expected = {
        "pooler": output.pooler_output,
        "mean": torch.stack(
            [own[mask].mean(0) for own, mask in zip(hidden, is_token, strict=True)]
        ),
        "cls": torch.stack([own[mask][0] for own, mask in zip(hidden, is_token, strict=True)]),
    }[pooling]
    tower, own_tokenizer = load(tmp_path, pooling)
    encoder = TextEncoder(tower, own_tokenizer, max_text_length=16)
    np.testing.assert_allclose(encoder.embed(TEXTS), unit(expected), atol=1e-5)


def test_the_side_of_the_padding_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    save_tower(tmp_path, "siglip", max_position_embeddings=32)
    fingerprints = set()
    for side in ("left", "right"):
        save_tokenizer(tmp_path, "end", padding_side=side)
        fingerprints.add(TextEncoder(*load(tmp_path, "pooler")).fingerprint)
    assert len(fingerprints) == 2


def test_too_many_tokens_are_an_error_and_what_is_given_comes_back_in_its_place(
    tmp_path: Path,
) -> None:
    save_tower(tmp_path, "siglip", max_position_embeddings=32)
    tower, _ = load(tmp_path, "pooler")
    assert isinstance(tower, PaddedTextModel)
    assert tower(input_ids=torch.full((2, 5), 4)).last_hidden_state.shape == (2, 5, 32)
    with pytest.raises(ValueError, match="33 tokens; texts are padded to 32"):
        tower(input_ids=torch.full((2, 33), 4))


@pytest.mark.parametrize(
    ("family", "pooling"),
    [
        ("siglip", "pooler"),
        ("siglip", "mean"),
        ("clip", "pooler"),
        ("t5", "mean"),
        ("mpnet", "mean"),
        ("deberta-v2", "mean"),
        ("gpt2", "mean"),
        ("chinese_clip", "cls"),
    ],
)
def test_a_saved_tower_gives_the_same_vectors_and_fingerprint(
    family: str, pooling: str, tmp_path: Path
) -> None:
    save_tower(tmp_path / "tower", family)
    tower, tokenizer = load(tmp_path / "tower", pooling)
    first = TextEncoder(tower, tokenizer)
    expected = first.embed(TEXTS)
    # In training, where texts of one batch are padded to the longest.
    batch = tokenize(tokenizer, TEXTS, max_text_length=32)
    with torch.no_grad():
        trained = tower(**batch).pooler_output
    np.testing.assert_allclose(unit(trained), expected, atol=1e-5)
    tower.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = TextEncoder(*load(tmp_path / "saved", pooling))
    np.testing.assert_array_equal(again.embed(TEXTS), expected)
    assert again.fingerprint == first.fingerprint
    plain = AutoModel.from_pretrained(tmp_path / "saved").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "saved")(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        np.testing.assert_allclose(
            unit(plain(input_ids=ids).pooler_output)[0], expected[0], atol=1e-5
        )


@pytest.mark.parametrize(
    ("family", "pooling"), [("siglip", "mean"), ("bert", "mean"), ("t5", "mean")]
)
def test_every_weight_of_a_wrapped_tower_is_trained(
    family: str, pooling: str, tmp_path: Path
) -> None:
    save_tower(tmp_path, family)
    tower, tokenizer = load(tmp_path, pooling)
    tower.requires_grad_(True)
    tower(**tokenize(tokenizer, TEXTS, max_text_length=32)).pooler_output.sum().backward()
    assert [name for name, weight in tower.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("family", ["siglip", "gpt2", "t5"])
def test_a_vector_is_bit_identical_alone_and_among_others(family: str, tmp_path: Path) -> None:
    save_tower(tmp_path, family)
    encoder = TextEncoder(*load(tmp_path, "mean"))
    together = encoder.embed(TEXTS)
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    np.testing.assert_array_equal(alone, together)
    assert encoder.int8 is None
    vectors, rows = encoder.token_vectors.of(np.array([4, 5, 4]))
    assert vectors[rows].shape == (3, encoder.dim)
