"""The seam types: what the pool, the curator, the ledger and the trainer hand to each other."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:  # they load torch
    import torch

    from cit_curate.text_encoder.texts import Texts
    from indexes.protocol import Queries

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

TEXT_KEY = re.compile(r"[a-z0-9-]+")

# The column of a scan's rows with the token ids of captions, where their pool keeps them.
TOKENS = "tokens"
PAIR_COLUMNS = ("image_id", "text_key", "caption", "image_uri", "source")


def pair_key(image_id: str, text_key: str) -> str:
    """`{image_id}_{text_key}`; it splits at its last `_`, since a text key has none."""
    return f"{image_id}_{text_key}"


def split_pair_key(key: str) -> tuple[str, str]:
    """The image id and the text key of a pair key.

    Raises:
        ValueError: There is no `_`, or what follows the last one is not a text key.
    """
    image_id, separator, text_key = key.rpartition("_")
    if not separator or not TEXT_KEY.fullmatch(text_key):
        raise ValueError(
            f"{key!r} is not a pair key; it reads IMAGE-ID_TEXT-KEY, as in 00001234_tag"
        )
    return image_id, text_key


def text_key_of(name: str) -> str:
    """A column or file name as a text key: lower case, everything but `[a-z0-9-]` becomes `-`.

    Raises:
        ValueError: Nothing is left of the name.
    """
    key = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not key:
        raise ValueError(f"{name!r} has no letter or digit to make a text key from")
    return key


@dataclass(frozen=True)
class PoolCursor:
    """Where a lane's scan stands: passes finished, and captions read in the current one."""

    pass_index: int = 0
    position: int = 0


@dataclass(frozen=True)
class CaptionBatch:
    """Captions in the order they are scanned.

    Attributes:
        rows: Table with `PAIR_COLUMNS`, all string, never null (image_uri "" = no image); and where
            pools have names, `pool`; where they keep tokens, `tokens`.
        pass_index: int64 [batch], the pass that each caption belongs to.
        position: int64 [batch], its place within that pass of the lane.
        scan_position: int64 [batch], captions this lane had scanned before it, over all passes.
        cursor: Where the scan stands after this batch.
    """

    rows: pa.Table
    pass_index: Int64
    position: Int64
    scan_position: Int64
    cursor: PoolCursor

    def __len__(self) -> int:
        return len(self.scan_position)


class CaptionOrder(Protocol):
    """The captions of a lane, in the order of its scan (`cit_curate.pool.mixed_order`)."""

    @property
    def length(self) -> int:
        """Captions of one pass."""

    @property
    def names(self) -> tuple[str, ...]:
        """The pools that the captions come from; none where pools have no names."""

    def batches(
        self, cursor: PoolCursor, batch_size: int, limit: int | None
    ) -> Iterator[CaptionBatch]:
        """Captions from a cursor on, `limit` at most; the last batch may be short."""

    def repeats(self, num_captions: int) -> int:
        """How often one caption may come among the first `num_captions`."""


class Embedder(Protocol):
    """One version of a text encoder: texts to vectors (`cit_curate.text_encoder.encoder`)."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that a vector depends on."""

    @property
    def device(self) -> "str | torch.device":
        """Where it computes, and where the index of its vectors lies."""

    @property
    def tokenizer_key(self) -> str:
        """SHA-256 of all that the tokens of a text depend on."""

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [texts, dim], unit norm."""

    def embed_on_device(self, texts: "Texts") -> "Queries":
        """As `embed`, the vectors where they were made."""


def each_row(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries; some at a time, since one alone takes twenty times as long."""
    for batch in rows.to_batches(max_chunksize=256):
        yield from batch.to_pylist()
