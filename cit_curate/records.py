"""The types that pool, curator, ledger and trainer pass to each other."""

import re
from collections.abc import Iterator
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

# The column of token ids, in the rows of a pool that stores tokens.
TOKENS = "tokens"
PAIR_COLUMNS = ("image_id", "text_key", "caption", "image_uri", "source")


def pair_key(image_id: str, text_key: str) -> str:
    """`{image_id}_{text_key}`, which splits at its last `_`, since a text key has none."""
    return f"{image_id}_{text_key}"


def split_pair_key(key: str) -> tuple[str, str]:
    """The image id and the text key of a pair key.

    Raises:
        ValueError: There is no `_`, or no text key after the last one.
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
        ValueError: The name has no letter or digit.
    """
    key = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not key:
        raise ValueError(f"{name!r} has no letter or digit to make a text key from")
    return key


@dataclass(frozen=True)
class PoolCursor:
    """The position of a lane's scan: finished passes, and captions read in the current pass."""

    pass_index: int = 0
    position: int = 0


@dataclass(frozen=True)
class CaptionBatch:
    """Captions in scan order.

    Attributes:
        rows: A table with `PAIR_COLUMNS`, all string, never null (image_uri "" = no image); with
            `pool` where pools have names, and `tokens` where they store tokens.
        pass_index: int64 [batch], the pass of each caption.
        position: int64 [batch], its position within that pass of the lane.
        scan_position: int64 [batch], its position over all passes of the lane.
        cursor: The position of the scan after this batch.
    """

    rows: pa.Table
    pass_index: Int64
    position: Int64
    scan_position: Int64
    cursor: PoolCursor

    def __len__(self) -> int:
        return len(self.scan_position)


class CaptionOrder(Protocol):
    """The captions of a lane, in scan order (`cit_curate.pool.mixed_order`)."""

    @property
    def length(self) -> int:
        """The number of captions in one pass."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the pools; empty where pools have no names."""

    def batches(
        self, cursor: PoolCursor, batch_size: int, limit: int | None
    ) -> Iterator[CaptionBatch]:
        """The captions from a cursor on, at most `limit`; the last batch may be short."""

    def repeats(self, num_captions: int) -> int:
        """The most times that one caption comes among the first `num_captions`."""


def each_row(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows as dictionaries, converted in blocks: one by one takes twenty times as long."""
    for batch in rows.to_batches(max_chunksize=256):
        yield from batch.to_pylist()
