"""Captions on their way to the text encoder, with the token ids that their pool keeps of them."""

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
        tokens: list of token ids [texts], null where nobody has tokenised a text yet; None: of all.
    """

    array: pa.Array
    tokens: pa.Array | None = None

    @classmethod
    def of(cls, texts: "Sequence[str] | Texts") -> "Texts":
        """Texts of which no token is known, or what are texts already."""
        return texts if isinstance(texts, Texts) else cls(pa.array(texts, pa.string()))

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: Int64) -> "Texts":
        """Some of them, in the order given: int64 [rows]."""
        places = pa.array(rows)
        tokens = None if self.tokens is None else self.tokens.take(places)
        return Texts(self.array.take(places), tokens)

    def distinct(self) -> tuple["Texts", Int64]:
        """Each text once, in the order they come, and int64 [texts], the place of each in them."""
        coded = self.array.dictionary_encode()
        places = coded.indices.to_numpy().astype(np.int64)
        if self.tokens is None:
            return Texts(coded.dictionary), places
        first = np.empty(len(coded.dictionary), dtype=np.int64)
        first[places[::-1]] = np.arange(len(places))[::-1]
        return Texts(coded.dictionary, self.tokens.take(pa.array(first))), places
