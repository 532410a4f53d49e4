"""Cheap guesses of a caption's best similarity, and how far they may be trusted.

A proxy looks at a caption's tokens and says about how close to the metadata the text encoder would
find it. Two of them: a linear map of the mean token embedding, fitted to the encoder's vectors, at
a hundredth of the encoder's cost; and the encoder itself in int8, at two fifths of it.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cit_curate.int8 import int8_copy
from cit_curate.packed import PackedTower, is_packable
from cit_curate.records import Float32
from cit_curate.text_encoder import TextEncoder
from cit_curate.tokens import Tokens
from indexes.protocol import MetadataIndex, blocks

# Of the mean of the diagonal of what is inverted.
RIDGE = 1e-3
# Parts of the calibration captions; each is guessed by a map that was fitted to the others.
FOLDS = 4
# The most similar calibration captions: so many show how guesses go up with similarity, and of so
# many the errors are looked at, or of all that pass.
TREND_CAPTIONS = 1024
CLOSEST_CAPTIONS = 256


class Proxy(Protocol):
    """What guesses the best similarity of captions."""

    def similarity(self, tokens: Tokens) -> Float32:
        """float32 [captions]; of each caption alone, whatever is beside it."""


@dataclass(frozen=True)
class TokenMap:
    """A linear map of the mean token embedding.

    Attributes:
        embeddings: float32 [vocabulary, width], the encoder's own.
        weight: float32 [width + 1, dim], the bias last.
        index: The metadata.
    """

    embeddings: torch.Tensor
    weight: torch.Tensor
    index: MetadataIndex

    def similarity(self, tokens: Tokens) -> Float32:
        """float32 [captions]; see `Proxy`."""
        rows = _mean_embedding(self.embeddings, tokens)
        # Blocks of one shape, so that a guess does not depend on the captions beside it.
        mapped = [torch.from_numpy(block) @ self.weight for block in blocks(rows.numpy())]
        vectors = torch.nn.functional.normalize(torch.cat(mapped)[: len(tokens)], dim=1)
        return self.index.search(vectors).similarity[:, 0]


@dataclass(frozen=True)
class Int8Tower:
    """The text tower in int8."""

    tower: PackedTower
    index: MetadataIndex

    def similarity(self, tokens: Tokens) -> Float32:
        """float32 [captions]; see `Proxy`."""
        return self.index.search(self.tower.embed(tokens)).similarity[:, 0]


def int8_tower(encoder: TextEncoder, index: MetadataIndex) -> Int8Tower | None:
    """The encoder's tower in int8; None on a GPU, and for a family that cannot be packed."""
    if encoder.device.type != "cpu" or not is_packable(encoder.tower):
        return None
    tower = PackedTower(int8_copy(encoder.tower), encoder.projection, encoder.device)
    return Int8Tower(tower, index)


def fit_token_map(
    encoder: TextEncoder, index: MetadataIndex, tokens: Tokens, vectors: Float32
) -> tuple[TokenMap, Float32]:
    """The map from mean token embeddings to the encoder's vectors, by ridge regression.

    Args:
        encoder: Whose token embeddings are taken.
        index: The metadata.
        tokens: Calibration captions.
        vectors: float32 [captions, dim], their vectors.

    Returns:
        The map, and float32 [captions], the guess for each of them by a map that has not seen it.
    """
    embeddings = encoder.tower.get_input_embeddings().weight.detach().float().cpu()
    inputs = _mean_embedding(embeddings, tokens).double()
    outputs = torch.from_numpy(vectors).double()
    fold = torch.arange(len(tokens)) % FOLDS
    sums = [_sums(inputs[fold == each], outputs[fold == each]) for each in range(FOLDS)]
    total = [sum(parts, torch.zeros_like(parts[0])) for parts in zip(*sums, strict=True)]
    guesses = np.empty(len(tokens), dtype=np.float32)
    for each in range(FOLDS):
        others = [whole - part for whole, part in zip(total, sums[each], strict=True)]
        rows = np.flatnonzero(fold.numpy() == each)
        guesses[rows] = TokenMap(embeddings, _solve(*others), index).similarity(tokens.take(rows))
    return TokenMap(embeddings, _solve(*total), index), guesses


@dataclass(frozen=True)
class Cut:
    """Which guesses are too low for a caption to pass.

    Attributes:
        expected: The guess to be expected for a caption just at the threshold.
        shortfalls: float32 [captions], ascending: how far below what was expected the guesses of
            the most similar captions were.
    """

    expected: float
    shortfalls: Float32

    @classmethod
    def fit(cls, guesses: Float32, similarity: Float32, threshold: float) -> "Cut":
        """Learn from captions whose similarity is known.

        Guesses are drawn to the middle: a line through the most similar captions says how far. If
        fewer than `CLOSEST_CAPTIONS` pass, the errors of so many stand for those of the few.

        Args:
            guesses: float32 [captions], by a proxy that has not seen them.
            similarity: float32 [captions].
            threshold: What a similarity must exceed.
        """
        closest = np.argsort(-similarity, kind="stable")
        passing = int((similarity > threshold).sum())
        trend = closest[: max(passing, TREND_CAPTIONS)]
        slope, offset = np.polyfit(
            similarity[trend].astype(np.float64), guesses[trend].astype(np.float64), 1
        )
        slope = max(slope, 0.0)
        near = closest[: max(passing, CLOSEST_CAPTIONS)]
        edge = min(threshold, float(similarity[near].min()))
        shortfalls = np.sort(offset + slope * edge - guesses[near])
        return cls(float(offset + slope * threshold), shortfalls.astype(np.float32))

    def margin(self, lost: float) -> float:
        """How far below what is expected a guess may be, if at most the share `lost` is missed."""
        return max(0.0, float(np.quantile(self.shortfalls, 1 - lost, method="higher")))


def _mean_embedding(embeddings: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Of each caption, with unit norm, and a 1 for the bias: float32 [captions, width + 1]."""
    ids, starts = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.starts)
    means = torch.nn.functional.embedding_bag(ids, embeddings, starts, mode="mean")
    unit = torch.nn.functional.normalize(means, dim=1)
    return torch.nn.functional.pad(unit, (0, 1), value=1.0)


def _sums(inputs: torch.Tensor, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs.T @ inputs, inputs.T @ outputs


def _solve(products: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    penalty = RIDGE * products.diagonal().mean() * torch.eye(len(products), dtype=products.dtype)
    solved: torch.Tensor = torch.linalg.solve(products + penalty, targets)
    # Coarse, so that the order in which threads add shows in no guess.
    return solved.bfloat16().float()
