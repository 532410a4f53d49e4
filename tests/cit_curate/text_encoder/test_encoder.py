"""The encoder's promise: a caption's vector, whatever else is embedded with it."""

import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_tower import small_tower
from transformers import AutoModel

from cit_curate.captions import MAX_CAPTION_BYTES, cut_at_bytes
from cit_curate.config import TextTowerConfig
from cit_curate.errors import BrokenVectorsError, NotFiniteError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.metadata.vectors import embed_metadata
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.load import load_text_tower

GOLDEN = Path(__file__).parents[2] / "golden"
MINILM = TextTowerConfig(text_encoder="package:minilm")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load(MINILM)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    with (GOLDEN / "captions.csv").open(newline="", encoding="utf-8") as stream:
        return [row["caption"] for row in csv.DictReader(stream)][:400]


@pytest.mark.faults("E10")
def test_a_vector_is_bit_identical_whatever_else_is_embedded(
    encoder: TextEncoder, captions: list[str]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = encoder.embed(captions)
    finally:
        torch.set_num_threads(threads)
    order = np.random.default_rng(0).permutation(len(captions))
    np.testing.assert_array_equal(encoder.embed([captions[row] for row in order]), whole[order])
    np.testing.assert_array_equal(encoder.embed(captions[5:8]), whole[5:8])
    torch.set_num_threads(1)
    try:
        np.testing.assert_array_equal(encoder.embed(captions[:100]), whole[:100])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_vector_equals_that_of_the_caption_padded_to_32(
    encoder: TextEncoder, captions: list[str]
) -> None:
    tower, tokenizer = load_text_tower(MINILM)
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.inference_mode():
        pooled = tower.eval()(**tokens).pooler_output
    padded = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    np.testing.assert_allclose(encoder.embed(captions), padded, atol=1e-6)


def test_vectors_have_unit_norm_and_nothing_gives_nothing(encoder: TextEncoder) -> None:
    vectors = encoder.embed(["a cat", "", "a" * 5000])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert encoder.embed([]).shape == (0, encoder.dim)


def test_the_fingerprint_follows_weights_pooling_and_length(tmp_path: Path) -> None:
    config = replace(small_tower(tmp_path), pooling="pooler")
    fingerprint = TextEncoder.load(config).fingerprint
    assert TextEncoder.load(config).fingerprint == fingerprint
    changed, tokenizer = load_text_tower(config)
    with torch.no_grad():
        changed.pooler.dense.bias[0] += 1e-6
    fingerprints = {
        fingerprint,
        TextEncoder.load(replace(config, max_text_length=16)).fingerprint,
        TextEncoder.load(replace(config, pooling="mean")).fingerprint,
        TextEncoder(changed, tokenizer).fingerprint,
    }
    assert len(fingerprints) == 4


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.slow
def test_other_poolings_are_a_registered_model_that_loads_again(
    pooling: str, captions: list[str], tmp_path: Path
) -> None:
    config = TextTowerConfig(text_encoder="package:minilm", pooling=pooling)  # type: ignore[arg-type]
    tower, tokenizer = load_text_tower(config)
    tokens = tokenizer(captions[:4], padding=True, return_tensors="pt")
    with torch.inference_mode():
        plain = AutoModel.from_pretrained(tower.tower.config._name_or_path).eval()
        hidden = plain(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        expected = hidden[:, 0] if pooling == "cls" else mean
        torch.testing.assert_close(tower.eval()(**tokens).pooler_output, expected)
    tower.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = TextEncoder.load(TextTowerConfig(text_encoder=str(tmp_path)))
    first = TextEncoder(tower, tokenizer)
    np.testing.assert_array_equal(again.embed(captions[:9]), first.embed(captions[:9]))
    assert again.fingerprint == first.fingerprint


def test_an_entry_is_the_mean_over_its_names_and_templates(encoder: TextEncoder) -> None:
    entries = [MetadataEntry("cat", ("kitten",)), MetadataEntry("dog")]
    vectors = embed_metadata(encoder.embed, entries, ["a {}", "the {}"])
    texts = encoder.embed(["a cat", "the cat", "a kitten", "the kitten"])
    expected = texts.mean(axis=0) / np.linalg.norm(texts.mean(axis=0))
    np.testing.assert_allclose(vectors[0], expected, atol=1e-6)
    assert vectors.shape == (2, encoder.dim)


@pytest.mark.faults("E2")
def test_a_class_without_a_finite_vector_is_named() -> None:
    def embed(texts: object) -> np.ndarray:
        return np.array([[1, 0], [np.nan, 0]], dtype=np.float32)

    with pytest.raises(NotFiniteError, match="dog") as caught:
        embed_metadata(embed, [MetadataEntry("cat"), MetadataEntry("dog")], ["{}"])
    assert caught.value.exit_code == 7


def test_broken_weights_are_an_error_that_names_the_caption(tmp_path: Path) -> None:
    tower, tokenizer = load_text_tower(replace(small_tower(tmp_path), pooling="pooler"))
    with torch.no_grad():
        tower.pooler.dense.bias[0] = torch.nan
    with pytest.raises(NotFiniteError, match="a cat"):
        TextEncoder(tower, tokenizer).embed(["a cat"])


@pytest.mark.faults("E1")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_overflowed_breaks_the_vectors_of_its_captions_alone(
    value: float, tmp_path: Path
) -> None:
    tower, tokenizer = load_text_tower(replace(small_tower(tmp_path), pooling="pooler"))
    sound = TextEncoder(tower, tokenizer).embed(["a dog", "a bird"])
    with torch.no_grad():
        tower.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("cat")] = value
    with pytest.raises(BrokenVectorsError, match=r"'the cat' \(and 1 further texts\)") as caught:
        TextEncoder(tower, tokenizer).embed(["the cat", "a dog", "cat", "a bird", "the cat"])
    assert caught.value.broken.tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(caught.value.vectors[[1, 3]], sound)


@pytest.mark.faults("E1")
def test_a_vector_of_zeros_is_broken(tmp_path: Path) -> None:
    tower, tokenizer = load_text_tower(replace(small_tower(tmp_path), pooling="pooler"))
    with torch.no_grad():
        tower.pooler.dense.weight.zero_()
        tower.pooler.dense.bias.zero_()
    with pytest.raises(BrokenVectorsError, match="zero for 'a cat'"):
        TextEncoder(tower, tokenizer).embed(["a cat"])


NASTY = {
    "letters": "x" * 1_000_000,
    "combining marks": "\u0301" * 100_000,
    "stacked accents": "a\u0301\u0316" * 100_000,
    "directions": "\u202e\u202d" * 300_000,
    "emoji": "\U0001f431" * 250_000,
    "brackets": "(((([" * 200_000,
}


@pytest.mark.faults("C2")
@pytest.mark.parametrize("name", NASTY)
@pytest.mark.slow
def test_a_megabyte_of_one_caption_is_cut_and_embedded_in_no_time(
    encoder: TextEncoder, name: str
) -> None:
    cut, was_cut = cut_at_bytes(NASTY[name])
    assert was_cut
    assert MAX_CAPTION_BYTES - 4 < len(cut.encode()) <= MAX_CAPTION_BYTES
    started = time.process_time()
    vectors = encoder.embed([cut])
    assert time.process_time() - started < 5
    np.testing.assert_allclose(np.linalg.norm(vectors), 1, atol=1e-6)
