"""Cheap guesses of a caption's best similarity, and the margins of their errors.

A proxy guesses from a caption's tokens the similarity that the text encoder would find. One is a
linear map of the encoder's vectors of single tokens, fitted to its vectors of captions, at a
hundredth of its cost; `token_match.py` goes on from there. The other is the encoder itself in
int8, at two fifths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch

from cit_curate.records import Float32, Int64
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.packed import PackedTower
from cit_curate.text_encoder.token_vectors import TokenVectors
from cit_curate.text_encoder.tokens import Tokens
from indexes.protocol import MetadataIndex, SearchResult, tensor_blocks

# The ridge penalty, as a share of the mean of the inverted matrix's diagonal.
RIDGE = 1e-2
# The share of all tokens at which a token's weight is halved (Arora et al. 2017).
COMMON = 1e-3
# Parts of the calibration captions; each is guessed by a map fitted to the others.
FOLDS = 4
# The most similar calibration captions: how many the trend of guesses is fitted to, and how many
# the errors are taken from; more where more pass.
TREND_CAPTIONS = 1024
CLOSEST_CAPTIONS = 384


class Proxy(Protocol):
    """A guess of the best similarity of captions.

    Attributes:
        widening: The factor of its margins.
    """

    widening: ClassVar[float]

    def similarity(self, tokens: Tokens) -> Float32:
        """float32 [captions]; a guess does not depend on the other captions."""


@dataclass(frozen=True)
class TokenMap:
    """A linear map of two sums of token vectors: the plain sum, and one weighted by rarity.

    Attributes:
        vectors: The vectors of single tokens.
        rarity: float32 [vocabulary], the weight of each token in the second sum.
        weight: float32 [2 * dim + 1, dim], the bias last.
        index: The metadata.
    """

    vectors: TokenVectors
    rarity: Float32
    weight: torch.Tensor
    index: MetadataIndex
    widening: ClassVar[float] = 1.0

    def similarity(self, tokens: Tokens) -> Float32:
        """float32 [captions]; see `Proxy`."""
        return self.nearest(self.sums(tokens), 1).similarity[:, 0]

    def sums(self, tokens: Tokens) -> torch.Tensor:
        """Both sums at unit norm, and a 1 for the bias: float32 [captions, 2 * dim + 1]."""
        return _sums_of_tokens(self.vectors, self.rarity, tokens)

    def nearest(self, sums: torch.Tensor, count: int) -> SearchResult:
        """The `count` entries nearest to each guessed vector."""
        # Blocks of one shape, so that a guess does not depend on the other captions.
        mapped = torch.cat([block @ self.weight for block in tensor_blocks(sums)])[: len(sums)]
        return self.index.search(torch.nn.functional.normalize(mapped, dim=1), count)


@dataclass(frozen=True)
class Int8Tower:
    """The text tower in int8.

    Its errors are small, but a few are several times as large as any among a few hundred. A wide
    margin costs next to nothing.
    """

    tower: PackedTower
    index: MetadataIndex
    widening: ClassVar[float] = 3.0

    def similarity(self, tokens: Tokens) -> Float32:
        """float32 [captions], infinite where there is no usable vector; see `Proxy`."""
        vectors = self.tower.embed(tokens)
        broken = ~vectors.isfinite().all(dim=1)
        similarity = self.index.search(vectors.nan_to_num(0.0, 0.0, 0.0)).similarity[:, 0]
        return np.where(broken.numpy(), np.float32(np.inf), similarity)


class Fold(NamedTuple):
    """A part of the calibration captions.

    Attributes:
        rows: int64 [captions], its captions.
        token_map: The map fitted to the other parts.
    """

    rows: Int64
    token_map: TokenMap


def fit_token_map(
    encoder: TextEncoder, index: MetadataIndex, tokens: Tokens, vectors: Float32
) -> tuple[TokenMap, list[Fold]]:
    """Fit a map from token vectors to the encoder's vectors of captions, by ridge regression.

    Args:
        encoder: The text encoder.
        index: The metadata.
        tokens: The tokens of the calibration captions.
        vectors: float32 [captions, dim], their vectors.

    Returns:
        The map; and the parts of the captions, each with a map fitted without it.
    """
    vocabulary = encoder.tower.get_input_embeddings().num_embeddings
    share = np.bincount(tokens.ids, minlength=vocabulary) / len(tokens.ids)
    rarity = (COMMON / (COMMON + share)).astype(np.float32)
    inputs = _sums_of_tokens(encoder.token_vectors, rarity, tokens).double()
    outputs = torch.from_numpy(vectors).to(inputs)
    fold = torch.arange(len(tokens)) % FOLDS
    sums = [_sums(inputs[fold == each], outputs[fold == each]) for each in range(FOLDS)]
    total = [sum(parts, torch.zeros_like(parts[0])) for parts in zip(*sums, strict=True)]

    def fitted(sums: Sequence[torch.Tensor]) -> TokenMap:
        return TokenMap(encoder.token_vectors, rarity, _solve(*sums), index)

    folds = []
    for each in range(FOLDS):
        others = [whole - part for whole, part in zip(total, sums[each], strict=True)]
        folds.append(Fold(np.flatnonzero(fold.numpy() == each), fitted(others)))
    return fitted(total), folds


def guess_apart(folds: Sequence[Fold], tokens: Tokens) -> Float32:
    """The guess for each calibration caption by the map fitted without it: float32 [captions]."""
    guesses = np.empty(len(tokens), dtype=np.float32)
    for rows, token_map in folds:
        guesses[rows] = token_map.similarity(tokens.take(rows))
    return guesses


@dataclass(frozen=True)
class Cut:
    """The cut below which a guess rules a caption out.

    Attributes:
        expected: The guess expected of a caption just at the threshold.
        edge: The guess expected of the least similar of the most similar captions.
        shortfalls: float32 [captions], ascending: how far the guesses of the most similar captions
            were below the edge.
    """

    expected: float
    edge: float
    shortfalls: Float32

    @classmethod
    def fit(cls, guesses: Float32, similarity: Float32, threshold: float) -> "Cut":
        """Fit a cut to captions whose similarity is known.

        Guesses are drawn to the middle; a line through the most similar captions measures how far.
        If fewer than `CLOSEST_CAPTIONS` pass, the errors of that many stand for those of the few.

        Args:
            guesses: float32 [captions], by a proxy that was fitted without them.
            similarity: float32 [captions].
            threshold: The similarity above which a caption is kept.
        """
        closest = np.argsort(-similarity, kind="stable")
        passing = int((similarity > threshold).sum())
        trend = closest[: max(passing, TREND_CAPTIONS)]
        slope, offset = np.polyfit(
            similarity[trend].astype(np.float64), guesses[trend].astype(np.float64), 1
        )
        slope = max(slope, 0.0)
        near = closest[: max(passing, CLOSEST_CAPTIONS)]
        edge = float(offset + slope * min(threshold, float(similarity[near].min())))
        shortfalls = np.sort(edge - guesses[near].astype(np.float64))
        return cls(float(offset + slope * threshold), edge, shortfalls.astype(np.float32))

    def margin(self, lost: float) -> float:
        """The margin below the expected guess that misses at most the share `lost`."""
        return max(0.0, float(np.quantile(self.shortfalls, 1 - lost, method="higher")))

    def let_through(self, guesses: Float32, margin: float) -> float:
        """The share of guesses that would not be ruled out if the edge were the threshold."""
        return float((guesses >= self.edge - margin).mean())


def _sums_of_tokens(vectors: TokenVectors, rarity: Float32, tokens: Tokens) -> torch.Tensor:
    """See `TokenMap.sums`."""
    rows, row_of = vectors.of(tokens.ids)
    starts = torch.from_numpy(tokens.starts).to(rows.device)
    weights = torch.from_numpy(rarity[tokens.ids]).to(rows.device)
    sums = [
        torch.nn.functional.embedding_bag(row_of, rows, starts, mode="sum", per_sample_weights=each)
        for each in (None, weights)
    ]
    unit = torch.cat([torch.nn.functional.normalize(each, dim=1) for each in sums], dim=1)
    return torch.nn.functional.pad(unit, (0, 1), value=1.0)


def _sums(inputs: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs.T @ inputs, inputs.T @ outputs


def _solve(products: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    penalty = RIDGE * products.diagonal().mean() * torch.eye(len(products)).to(products)
    solved: torch.Tensor = torch.linalg.solve(products + penalty, targets)
    # Rounded, so that the order in which threads add changes no guess.
    return solved.bfloat16().float()
