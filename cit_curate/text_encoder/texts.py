"""Captions to embed, with the token ids that their pool stores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cit_curate.records import Int64


@dataclass(frozen=True)
class Texts:
    """Texts to embed.

    Attributes:
        array: string [texts].
        tokens: list of token ids [texts], null for a text that has not been tokenised; None = no
            text has been.
    """

    array: pa.Array
    tokens: pa.Array | None = None

    @classmethod
    def of(cls, texts: "Sequence[str] | Texts") -> "Texts":
        """Strings as texts without tokens; texts are returned unchanged."""
        return texts if isinstance(texts, Texts) else cls(pa.array(texts, pa.string()))

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: Int64) -> "Texts":
        """The texts at `rows`, int64 [rows], in that order."""
        indices = pa.array(rows)
        tokens = None if self.tokens is None else self.tokens.take(indices)
        return Texts(self.array.take(indices), tokens)

    def distinct(self) -> tuple["Texts", Int64]:
        """The distinct texts, by first occurrence; and int64 [texts], each text's row in them."""
        encoded = self.array.dictionary_encode()
        rows = encoded.indices.to_numpy().astype(np.int64)
        if self.tokens is None:
            return Texts(encoded.dictionary), rows
        first = np.empty(len(encoded.dictionary), dtype=np.int64)
        first[rows[::-1]] = np.arange(len(rows))[::-1]
        return Texts(encoded.dictionary, self.tokens.take(pa.array(first))), rows
