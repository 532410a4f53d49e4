"""Vectors of single tokens: each embedded once, between the tokenizer's special ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_tower import small_tower

from cit_curate.text_encoder import encoder as encoder_module
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.token_vectors import TokenVectors
from cit_curate.text_encoder.tokenizer import special_tokens
from cit_curate.text_encoder.tokens import Tokens


def test_each_token_is_embedded_once_whatever_is_asked_for_with_it() -> None:
    embedded: list[list[int]] = []

    def embed(tokens: Tokens) -> torch.Tensor:
        texts = [part.tolist() for part in np.split(tokens.ids, np.cumsum(tokens.counts)[:-1])]
        embedded.extend(texts if len(tokens) else [])
        rows = [[text[1], 1.0 / text[1]] for text in texts if text]
        return torch.tensor(rows).reshape(-1, 2)

    vectors = TokenVectors(embed, [1], [2], vocabulary=10)
    for ids in ([5, 3, 5], [3, 5], [7, 3], []):
        rows, places = vectors.of(np.array(ids, dtype=np.int64))
        assert rows[places][:, 0].tolist() == ids
    assert embedded == [[1, 3, 2], [1, 5, 2], [1, 7, 2]]


def test_a_token_without_a_finite_vector_counts_for_nothing() -> None:
    def embed(tokens: Tokens) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])

    rows, places = TokenVectors(embed, [], [], vocabulary=5).of(np.array([4, 3]))
    assert rows[places].tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(small_tower(tmp_path_factory.mktemp("tower")), device="cpu")


def test_the_encoder_gives_a_token_the_vector_of_its_word_alone(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "has_int8", lambda: True)
    before, behind = special_tokens(encoder.tokenizer)
    token = encoder.tokenize(["a"]).ids.tolist()
    assert [*before, *token[len(before) : len(token) - len(behind)], *behind] == token
    (word,) = token[len(before) : len(token) - len(behind)]
    rows, places = encoder.token_vectors.of(np.array([word]))
    # The tower in int8 makes them.
    assert float(rows[places][0] @ torch.from_numpy(encoder.embed(["a"])[0])) > 0.98


def test_a_family_without_a_packed_form_gives_its_own(tmp_path: Path) -> None:
    loaded = TextEncoder.load(small_tower(tmp_path), device="cpu")
    padded = TextEncoder(loaded.tower, loaded.tokenizer, packed=False)
    padded.__dict__["int8"] = None
    word = padded.tokenize(["a"]).ids[1:2]
    rows, places = padded.token_vectors.of(word)
    np.testing.assert_array_equal(rows[places].numpy(), padded.embed(["a"]))
