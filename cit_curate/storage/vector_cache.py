"""Text vectors kept beside a pool, so that no text is embedded twice under one encoder.

```
POOL/vectors/<encoder>/
  part-<hash>.npy       float32 [rows, dim]
  part-<hash>.keys.npy  uint8 [rows, 16]: the first half of the SHA-256 of each text
```
`<encoder>` is the start of the SHA-256 of all that the bits of a vector depend on. So a vector that
is found is the one that embedding would give, and whether it was kept shows in no result. A cache
is never worth a failure: where it cannot be read or written, texts are embedded.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cit_curate.records import Bool, Float32
from cit_curate.storage.cache_folder import cache_folder
from cit_curate.storage.durable import sweep_temporary
from cit_curate.storage.row_cache import PART_BYTES, RowCache

KEY_BYTES = 16
# Letters of the encoder's key in the name of its folder.
ENCODER_LETTERS = 16
FOLDER_NAME = "vectors"

logger = logging.getLogger(__name__)


def text_keys(texts: Sequence[str]) -> list[bytes]:
    """The cache key of each text."""
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    return [hashlib.sha256(text).digest()[:KEY_BYTES] for text in encoded]


class VectorCache:
    """The kept vectors of all encoders of a pool.

    Attributes:
        folder: The folder of all encoders.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None) -> None:
        """Open nothing yet.

        Args:
            folder: The folder of all encoders; it may not exist.
            max_bytes: Its size limit; the parts that were not used for longest are removed first.
                None = no limit.
        """
        self.folder = folder
        self._max_bytes = max_bytes
        self._encoders: dict[str, RowCache] = {}
        self._is_writable = True

    @classmethod
    def beside(cls, pools: Sequence[Path], *, max_bytes: int | None) -> "VectorCache | None":
        """The cache of some pools, which lies in the first folder that can be written.

        Args:
            pools: The folders of the pools that are on a disk; where none can be written, the
                vectors go to the cache folder.
            max_bytes: See `__init__`; 0 = no cache.
        """
        if max_bytes == 0:
            return None
        writable = (pool for pool in pools if os.access(pool, os.W_OK | os.X_OK))
        return cls(next(writable, cache_folder()) / FOLDER_NAME, max_bytes=max_bytes)

    def find(self, encoder: str, keys: Sequence[bytes]) -> tuple[Bool, Float32]:
        """The kept vectors of texts.

        Args:
            encoder: The encoder's key, see `TextEncoder.vector_key`.
            keys: The `text_keys` of the texts.

        Returns:
            bool [texts], which of them are kept; and float32 [kept, dim], unit norm, in the order
            of the texts.
        """
        cache = self._of(encoder)
        is_kept = cache.knows(keys)
        kept = [keys[row] for row in np.flatnonzero(is_kept).tolist()]
        return is_kept, cache.rows(kept) if kept else np.zeros((0, 0), np.float32)

    def keep(self, encoder: str, keys: Sequence[bytes], vectors: Float32) -> None:
        """Keep vectors, float32 [texts, dim], except those that are NaN, infinite or zero."""
        if not self._is_writable:
            return
        squares = np.einsum("ij,ij->i", vectors, vectors)
        sound = np.flatnonzero((squares > 0.5) & (squares < 2.0))
        cache = self._of(encoder)
        cache.add([keys[row] for row in sound.tolist()], vectors[sound])
        if cache.new_bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was kept since the last time; a disk that does not take it is no error."""
        for cache in self._encoders.values():
            if not self._is_writable or not cache.new_bytes:
                continue
            try:
                sweep_temporary(cache.folder)
                cache.flush()
            except OSError as error:
                self._is_writable = False
                logger.warning("from here on, no vectors are kept in %s: %s", self.folder, error)

    def _of(self, encoder: str) -> RowCache:
        if encoder not in self._encoders:
            self._encoders[encoder] = RowCache(
                self.folder / encoder[:ENCODER_LETTERS],
                key_bytes=KEY_BYTES,
                max_bytes=self._max_bytes,
                removes_damaged=True,
                keeps_used=True,
            )
        return self._encoders[encoder]
