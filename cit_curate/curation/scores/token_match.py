"""A closer guess: a caption's tokens against the few entries that the map of tokens puts nearest.

The map guesses a caption's whole vector, and so blurs what decides whether the caption passes. A
quadratic regression of the similarity itself also sees how close the closest token comes to the
entry, and how long the caption is. It takes two to three hundredths of the text encoder's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from cit_curate.curation.scores.proxies import Fold, TokenMap
from cit_curate.records import Float32, Int64
from cit_curate.text_encoder.tokens import Tokens
from indexes.proposals import own_products

Float64 = npt.NDArray[np.float64]

# The entries that a caption is compared with: the map is often wrong about the very nearest.
NEAREST = 3
# The ridge penalty, as a share of the mean of the inverted matrix's diagonal.
RIDGE = 1e-3
# Captions whose tokens are compared at once, which keeps their vectors in the processor's cache.
BLOCK_CAPTIONS = 256


@dataclass(frozen=True)
class TokenMatch:
    """The best similarity to the entries that a map puts nearest, by regression.

    Its margins are widened so that, with what the map before it loses, as much is kept as by the
    map alone (docs/performance.md, Cascade).

    Attributes:
        token_map: The map.
        regression: From what a caption and an entry have in common to their similarity.
    """

    token_map: TokenMap
    regression: "Quadratic"
    widening: ClassVar[float] = 1.15

    def similarity(self, tokens: Tokens) -> Float32:
        """float32 [captions]; see `Proxy`."""
        features, _ = _compare(self.token_map, tokens)
        guesses: Float32 = self.regression(features).max(axis=1).astype(np.float32)
        return guesses


@dataclass(frozen=True)
class Quadratic:
    """A quadratic function of features.

    Attributes:
        mean: float64 [features].
        deviation: float64 [features].
        weight: float64 [terms], of 1, each standardised feature, and each product of two.
    """

    mean: Float64
    deviation: Float64
    weight: Float64

    @classmethod
    def fit(cls, features: Float64, targets: Float32) -> "Quadratic":
        """Fit by ridge regression.

        Args:
            features: float64 [captions, entries, features].
            targets: float32 [captions, entries].
        """
        mean, deviation = features.mean(axis=(0, 1)), features.std(axis=(0, 1))
        unfitted = cls(mean, np.where(deviation > 0, deviation, 1.0), np.zeros(0))
        terms = unfitted.terms(features).reshape(targets.size, -1)  # [captions * entries, terms]
        # Not by BLAS, so that the number of threads changes no guess.
        products = np.einsum("ni,nj->ij", terms, terms)
        penalty = RIDGE * products.trace() / len(products) * np.eye(len(products))
        weight = np.linalg.solve(products + penalty, np.einsum("ni,n->i", terms, targets.ravel()))
        return replace(unfitted, weight=weight)

    def __call__(self, features: Float64) -> Float64:
        """float64 [captions, entries]."""
        value: Float64 = (self.terms(features) * self.weight).sum(axis=-1)
        return value

    def terms(self, features: Float64) -> Float64:
        """float64 [captions, entries, terms]."""
        z = (features - self.mean) / self.deviation
        first, second = np.triu_indices(z.shape[-1])
        return np.concatenate([np.ones_like(z[..., :1]), z, z[..., first] * z[..., second]], -1)


def fit_token_match(
    token_map: TokenMap, folds: Sequence[Fold], tokens: Tokens, vectors: Float32
) -> tuple[TokenMatch, Float32]:
    """Fit the regression to the encoder's vectors of captions.

    Args:
        token_map: The map.
        folds: The calibration captions in parts, each with a map fitted to the others.
        tokens: The tokens of the calibration captions.
        vectors: float32 [captions, dim], their vectors.

    Returns:
        The guess; and float32 [captions], the guess for each caption by a map and a regression
        fitted without it.
    """
    entries = token_map.index.vectors
    features, targets = [], []
    for rows, other_map in folds:
        compared, ids = _compare(other_map, tokens.take(rows))
        features.append(compared)
        targets.append(own_products(entries, vectors[rows], ids))
    guesses = np.empty(len(tokens), dtype=np.float32)
    for each, fold in enumerate(folds):
        others = [other for other in range(len(folds)) if other != each]
        regression = Quadratic.fit(
            np.concatenate([features[other] for other in others]),
            np.concatenate([targets[other] for other in others]),
        )
        guesses[fold.rows] = regression(features[each]).max(axis=1)
    regression = Quadratic.fit(np.concatenate(features), np.concatenate(targets))
    return TokenMatch(token_map, regression), guesses


def _compare(token_map: TokenMap, tokens: Tokens) -> tuple[Float64, Int64]:
    """What captions have in common with the entries that a map puts nearest.

    Returns:
        float64 [captions, entries, 4]: the entry's cosine with the caption's vector by the map,
        with its sum of tokens by rarity, and with its closest token; and the logarithm of the
        number of tokens. And int64 [captions, entries], the entries, best first.
    """
    sums = token_map.sums(tokens)
    entries = token_map.index.vectors
    nearest = token_map.nearest(sums, min(NEAREST, len(entries)))
    features = np.empty((*nearest.ids.shape, 4))
    features[..., 0] = nearest.similarity
    features[..., 3] = np.log(np.maximum(tokens.counts, 1))[:, None]
    rare = sums[:, entries.shape[1] : -1]
    for start in range(0, len(tokens), BLOCK_CAPTIONS):
        rows = np.arange(start, min(start + BLOCK_CAPTIONS, len(tokens)))
        block = tokens.take(rows)
        for rank in range(features.shape[1]):
            entry = torch.from_numpy(entries[nearest.ids[rows, rank]]).to(sums.device)
            cosine = (rare[start : start + len(rows)] * entry).sum(dim=1)
            features[rows, rank, 1] = cosine.cpu().numpy()
            features[rows, rank, 2] = _closest_token(token_map, block, entry).cpu().numpy()
    return features, nearest.ids


def _closest_token(token_map: TokenMap, tokens: Tokens, entries: torch.Tensor) -> torch.Tensor:
    """The largest cosine of a caption's tokens with the caption's entry: float32 [captions].

    Each is multiplied by the root of the token's rarity: words of every caption say little. The
    largest is at least 0.
    """
    vectors, row_of = token_map.vectors.of(tokens.ids)
    caption = np.repeat(np.arange(len(tokens)), tokens.counts)
    caption_of = torch.from_numpy(caption).to(row_of.device)
    # [tokens, dim] summed over dim
    cosine = (vectors[row_of] * entries[caption_of]).sum(dim=1)
    cosine *= torch.from_numpy(np.sqrt(token_map.rarity[tokens.ids])).to(cosine.device)
    closest = torch.zeros(len(tokens), device=cosine.device)
    return closest.scatter_reduce(0, caption_of, cosine, "amax")
