"""The vectors that the text tower computes for single tokens, each when it is first needed.

The sum of its tokens' vectors approximates a caption's own vector, and costs next to nothing: the
static embeddings of Model2Vec (Minish Lab, 2024), for the current tower.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cit_curate.records import Int64
from cit_curate.text_encoder.tokens import Tokens


class TokenVectors:
    """A cache of token vectors."""

    def __init__(
        self,
        embed: Callable[[Tokens], torch.Tensor],
        before: Sequence[int],
        after: Sequence[int],
        *,
        vocabulary: int,
    ) -> None:
        """Start without any vectors.

        Args:
            embed: Tokens to float32 [texts, dim]; a text's vector must not depend on the others.
            before: The ids that the tokenizer adds before a text.
            after: The ids that it adds after a text.
            vocabulary: The number of tokens in the vocabulary.
        """
        self._embed = embed
        self._before, self._after = list(before), list(after)
        self._rows = np.full(vocabulary, -1, dtype=np.int64)
        self._vectors: torch.Tensor | None = None

    def of(self, ids: Int64) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of tokens.

        Args:
            ids: int64 [tokens].

        Returns:
            All cached vectors, float32 [vectors, dim], with zeros for values that are not finite;
            and the row of each token's vector in them, int64 [tokens]. Both are on the tower's
            device.
        """
        new = np.unique(ids[self._rows[ids] < 0])
        if len(new) or self._vectors is None:
            alone = [[*self._before, token, *self._after] for token in new.tolist()]
            vectors = self._embed(Tokens.of(alone)).nan_to_num(0.0, 0.0, 0.0)
            first = 0 if self._vectors is None else len(self._vectors)
            self._vectors = (
                vectors if self._vectors is None else torch.cat([self._vectors, vectors])
            )
            self._rows[new] = np.arange(first, len(self._vectors))
        return self._vectors, torch.from_numpy(self._rows[ids]).to(self._vectors.device)
