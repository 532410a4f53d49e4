"""The seam types: what the pool, the curator, the ledger and the trainer hand to each other."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
    """Where a lane's captions come from; `ScanOrder` and `MixedOrder` of `cit_curate.pool` are."""

    @property
    def length(self) -> int:
        """Captions of one pass."""

    def batches(
        self, cursor: PoolCursor, batch_size: int, limit: int | None
    ) -> Iterator[CaptionBatch]:
        """Captions from a cursor on, `limit` at most; the last batch may be short."""


class Embedder(Protocol):
    """What turns captions into vectors; `cit_curate.text_encoder.encoder.TextEncoder` is one."""

    @property
    def fingerprint(self) -> str:
        """Version of the encoder."""

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [texts, dim], unit norm."""


def each_row(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries; some at a time, since one alone takes twenty times as long."""
    for batch in rows.to_batches(max_chunksize=256):
        yield from batch.to_pylist()
