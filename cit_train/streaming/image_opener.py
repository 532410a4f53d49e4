"""The images of one lane, opened and checked in the background ahead of the shard writer."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from cit_curate.images.decoders import decoders
from cit_curate.pool.mixture import PoolMixture
from cit_curate.records import each_row

# Threads that open and check images for all lanes of a process, each through a decoder process of
# its own; more than this would mostly take cores from the training loop.
MAX_THREADS = 8
# Images of a lane that are opened ahead of the one being written.
NUM_AHEAD = 2 * MAX_THREADS


def image_threads() -> ThreadPoolExecutor:
    """The threads that open and check images, for all lanes of a process."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS), thread_name_prefix="images")


def never_decoded(image: bytes) -> bool:
    """Whether an image is known to decode: not yet."""
    return False


class ImageOpener:
    """Opens the images of one lane's pairs on shared threads.

    Attributes:
        pools: The pools of the images.
    """

    def __init__(
        self,
        pools: PoolMixture,
        threads: ThreadPoolExecutor,
        *,
        max_pixels: int,
        side: int,
        is_decoded: Callable[[bytes], bool] = never_decoded,
    ) -> None:
        """Open nothing yet.

        Args:
            pools: The pools of the images.
            threads: The threads that open and check images.
            max_pixels: The most pixels of an image; larger ones are rejected.
            side: The side of a stored image, see `shard_image`.
            is_decoded: Whether an image is known to decode.
        """
        self.pools, self._threads = pools, threads
        self._max_pixels, self._side, self._is_decoded = max_pixels, side, is_decoded
        self._ahead: deque[Future[bytes]] = deque()
        self._later: Iterator[dict[str, Any]] | None = None

    def open_ahead(self, pairs: pa.Table, row: int) -> "Future[bytes]":
        """The image of one row, while those of the next rows are opened in the background.

        Args:
            pairs: The pairs, the same on every call.
            row: The row, each time the one after the last.
        """
        if self._later is None:
            self._later = each_row(pairs.slice(row))
        while len(self._ahead) < NUM_AHEAD and (fields := next(self._later, None)):
            self._ahead.append(self.open(fields))
        return self._ahead.popleft()

    def open(self, fields: Mapping[str, Any]) -> "Future[bytes]":
        """The bytes that a shard stores for a pair's image, or an ImageRejected."""
        return self._threads.submit(
            self._image, fields["pool"], fields["image_uri"], fields["source"]
        )

    def cancel(self) -> None:
        """Cancel what is opened in the background."""
        for future in self._ahead:
            future.cancel()

    def _image(self, pool: str, image_uri: str, source: str) -> bytes:
        image: bytes = self.pools[pool].image_bytes(image_uri, source)
        if not self._side and self._is_decoded(image):
            return image
        return decoders().shard_image(image, side=self._side, max_pixels=self._max_pixels)
