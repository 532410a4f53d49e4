"""What the text tower makes of single tokens; each goes through it once, when it is first met.

The sum of its tokens' vectors says much of a caption's own, and costs next to nothing: the static
embeddings of Model2Vec (Minish Lab, 2024), of the tower as it is now.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cit_curate.records import Int64
from cit_curate.text_encoder.tokens import Tokens


class TokenVectors:
    """The vectors of the tokens met so far."""

    def __init__(
        self,
        embed: Callable[[Tokens], torch.Tensor],
        before: Sequence[int],
        behind: Sequence[int],
        *,
        vocabulary: int,
    ) -> None:
        """Embed nothing yet.

        Args:
            embed: Gives each text float32 [texts, dim], whatever else is embedded with it.
            before: What the tokenizer puts before a text.
            behind: What it puts behind one.
            vocabulary: Number of tokens that there are.
        """
        self._embed = embed
        self._before, self._behind = list(before), list(behind)
        self._places = np.full(vocabulary, -1, dtype=np.int64)
        self._rows: torch.Tensor | None = None

    def of(self, ids: Int64) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors that those of some tokens are among.

        Args:
            ids: int64 [tokens].

        Returns:
            float32 [vectors, dim], zero for a token whose vector is not finite; and int64 [tokens],
            the place of each token's vector. Both are on the tower's device.
        """
        new = np.unique(ids[self._places[ids] < 0])
        if len(new) or self._rows is None:
            alone = [[*self._before, token, *self._behind] for token in new.tolist()]
            found = self._embed(Tokens.of(alone)).nan_to_num(0.0, 0.0, 0.0)
            first = 0 if self._rows is None else len(self._rows)
            self._rows = found if self._rows is None else torch.cat([self._rows, found])
            self._places[new] = np.arange(first, len(self._rows))
        return self._rows, torch.from_numpy(self._places[ids]).to(self._rows.device)
