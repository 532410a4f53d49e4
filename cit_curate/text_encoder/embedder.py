"""One version of a text encoder, as everybody else sees it: texts to vectors."""

from collections.abc import Sequence
from typing import Protocol

import torch

from cit_curate.records import Float32
from cit_curate.text_encoder.texts import Texts
from indexes.protocol import Queries


class Embedder(Protocol):
    """One version of a text encoder: texts to vectors (`cit_curate.text_encoder.encoder`)."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of all that a vector depends on."""

    @property
    def device(self) -> str | torch.device:
        """The device that it computes on, which also holds the index of its vectors."""

    @property
    def tokenizer_key(self) -> str:
        """The SHA-256 of all that the tokens of a text depend on."""

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [texts, dim], unit norm."""

    def embed_on_device(self, texts: Texts) -> Queries:
        """As `embed`, with the vectors left on the device."""
