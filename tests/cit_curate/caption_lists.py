"""Captions in memory as a pool, and an encoder of angles, for tests of a scan."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cit_curate.records import PAIR_COLUMNS, CaptionBatch, PoolCursor


@dataclass(frozen=True)
class ListOrder:
    """A pool of captions that is scanned as it stands, pass after pass."""

    rows: pa.Table

    @property
    def length(self) -> int:
        return len(self.rows)

    def batches(
        self, cursor: PoolCursor, batch_size: int, limit: int | None
    ) -> Iterator[CaptionBatch]:
        start = cursor.pass_index * self.length + cursor.position
        stop = start + (limit if limit is not None else 10**9)
        while start < stop:
            scan_position = np.arange(start, min(start + batch_size, stop))
            pass_index, position = np.divmod(scan_position, self.length)
            start = int(scan_position[-1]) + 1
            after = PoolCursor(*(int(value) for value in divmod(start, self.length)))
            rows = self.rows.take(position)
            yield CaptionBatch(rows, pass_index, position, scan_position, after)


class WordEncoder:
    """Captions are angles in degrees; their vector is the point on the unit circle."""

    fingerprint = "words"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        angles = np.radians(np.array([float(text) for text in texts], dtype=np.float64))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def caption_table(captions: Sequence[str], text_key: str = "title") -> pa.Table:
    rows = [(f"{row:08d}", text_key, caption, "", "s") for row, caption in enumerate(captions)]
    columns = list(zip(*rows, strict=True))
    return pa.table([pa.array(column, pa.string()) for column in columns], names=PAIR_COLUMNS)
