"""The tokens of a caption, held against its nearest entries, guess closer than their sums."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from cit_curate.curation.scores.proxies import Cut, fit_token_map, guess_apart
from cit_curate.curation.scores.token_match import Quadratic, TokenMatch, fit_token_match
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.token_vectors import TokenVectors
from cit_curate.text_encoder.tokens import Tokens
from indexes.build import build_index
from indexes.protocol import MetadataIndex

VOCABULARY, DIM, NUM_CAPTIONS = 400, 64, 4_000


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def words() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(VOCABULARY, DIM)))


@pytest.fixture(scope="module")
def encoder(words: np.ndarray) -> TextEncoder:
    """A tower without context: the vector of a token is that of its word."""

    def embed(alone: Tokens) -> torch.Tensor:
        return torch.from_numpy(words[alone.ids])

    tower = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(num_embeddings=VOCABULARY))
    vectors = TokenVectors(embed, [], [], vocabulary=VOCABULARY)
    return cast(TextEncoder, SimpleNamespace(tower=tower, token_vectors=vectors))


@pytest.fixture(scope="module")
def index(words: np.ndarray) -> MetadataIndex:
    return build_index(words[:4], "exact")


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    rng = np.random.default_rng(1)
    return Tokens.of(
        [rng.integers(0, VOCABULARY, length) for length in rng.integers(4, 20, NUM_CAPTIONS)]
    )


@pytest.fixture(scope="module")
def vectors(words: np.ndarray, tokens: Tokens) -> np.ndarray:
    """The vectors of captions, in which the word that comes closest to an entry outweighs all."""
    weight = np.exp(3 * (words @ words[:4].T).max(axis=1))
    sums = np.add.reduceat(words[tokens.ids] * weight[tokens.ids][:, None], tokens.starts)
    return unit(sums)


def test_a_quadratic_function_is_found() -> None:
    features = np.random.default_rng(0).normal(3.0, 2.0, (1_000, 2, 3))
    first, second, third = np.moveaxis(features, -1, 0)
    targets = (1 + first - 2 * second * third + 0.5 * first**2).astype(np.float32)
    found = Quadratic.fit(features[:800], targets[:800])(features[800:])
    np.testing.assert_allclose(found, targets[800:], atol=0.05 * targets.std())


def test_a_feature_that_never_changes_does_no_harm() -> None:
    features = np.ones((100, 1, 2))
    features[:, 0, 0] = np.arange(100)
    found = Quadratic.fit(features, features[..., 0].astype(np.float32))(features)
    np.testing.assert_allclose(found, features[..., 0], atol=0.5)


def test_fewer_captions_are_let_through_than_by_the_map(encoder, index, tokens, vectors) -> None:
    similarity = index.search(vectors).similarity[:, 0]
    threshold = float(np.quantile(similarity, 0.98))
    known, others = np.arange(2_500), np.arange(2_500, NUM_CAPTIONS)
    token_map, folds = fit_token_map(encoder, index, tokens.take(known), vectors[known])
    match, matched = fit_token_match(token_map, folds, tokens.take(known), vectors[known])
    let_through = []
    for proxy, guesses in (
        (token_map, guess_apart(folds, tokens.take(known))),
        (match, matched),
    ):
        cut = Cut.fit(guesses, similarity[known], threshold)
        low = proxy.similarity(tokens.take(others)) < cut.expected - cut.margin(0.01)
        assert low[similarity[others] > threshold].mean() <= 0.05
        let_through.append(1 - low.mean())
    assert let_through[1] < 0.5 * let_through[0]


@pytest.fixture(scope="module")
def match(encoder, index, tokens, vectors) -> TokenMatch:
    token_map, folds = fit_token_map(encoder, index, tokens, vectors)
    return fit_token_match(token_map, folds, tokens, vectors)[0]


@pytest.mark.parametrize("count", [1, 2, 255, 257, 3_001])
def test_the_other_captions_of_a_batch_do_not_show(match, tokens, count: int) -> None:
    rows = np.random.default_rng(count).permutation(NUM_CAPTIONS)[:count]
    together = match.similarity(tokens)
    np.testing.assert_array_equal(match.similarity(tokens.take(rows)), together[rows])


def test_threads_do_not_show(encoder, index, tokens, vectors) -> None:
    some = tokens.take(np.arange(1_000))
    threads = torch.get_num_threads()
    guesses = []
    for count in (threads, 3 - min(threads, 2)):
        torch.set_num_threads(count)
        try:
            token_map, folds = fit_token_map(encoder, index, some, vectors[:1_000])
            match, apart = fit_token_match(token_map, folds, some, vectors[:1_000])
            guesses.append([match.similarity(some), apart])
        finally:
            torch.set_num_threads(threads)
    np.testing.assert_array_equal(*guesses)


def test_a_single_entry_is_enough(encoder, words, tokens, vectors) -> None:
    index = build_index(words[:1], "exact")
    token_map, folds = fit_token_map(encoder, index, tokens, vectors)
    match, guesses = fit_token_match(token_map, folds, tokens, vectors)
    assert guesses.shape == (NUM_CAPTIONS,)
    assert np.isfinite(guesses).all()
    assert match.similarity(tokens.take(np.arange(1))).shape == (1,)


def test_a_caption_without_tokens_is_guessed(match) -> None:
    assert np.isfinite(match.similarity(Tokens.of([[], [3], []]))).all()
