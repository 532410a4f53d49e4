"""Vision features of a frozen tower, computed once per crop, from a fixed set of crops per image.

They are the rows of a `RowCache`, float16 [rows, dim]. A key is the first half of the SHA-256 of
the image's bytes, and the number of the crop, little endian.

A feature depends only on the image's bytes and the number of the crop. Forward passes have a fixed
number of rows, and a fresh feature is rounded to float16 like one read from disk. So it does not
matter when a feature is computed, or whether it is removed and computed again.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cit_curate.storage.row_cache import PART_BYTES, RowCache
from cit_train.models.pooled_vision import PooledVision
from cit_train.streaming.views import ViewMaker, empty_views

IMAGE_BYTES = 16
KEY_BYTES = IMAGE_BYTES + 2
VIEW_KEY = 41
# Forward passes whose crops are decoded together.
_PASSES = 8


def image_key(image: bytes) -> bytes:
    """The cache key of an image: the first 16 bytes of its SHA-256."""
    return hashlib.sha256(image).digest()[:IMAGE_BYTES]


def feature_key(image: bytes, view: int) -> bytes:
    """The cache key of one crop, from the key of its image."""
    return image + view.to_bytes(2, "little")


class FeatureCache:
    """Features of the crops seen so far, in float16; those on disk are memory-mapped.

    Attributes:
        num_views: The crops per image that training chooses from.
        num_computed: The crops that went through the tower.
    """

    def __init__(
        self,
        folder: Path,
        vision: PooledVision,
        views: ViewMaker,
        *,
        fingerprint: str,
        num_views: int,
        max_bytes: int | None = None,
        num_threads: int = 2,
    ) -> None:
        """Open the parts on disk for this tower and these crops.

        Args:
            folder: The cache folder, shared by towers, runs and ranks.
            vision: The frozen tower.
            views: The maker of the crops.
            fingerprint: The fingerprint of the tower and its normalisation.
            num_views: The crops per image.
            max_bytes: The size limit of the folder, for all towers together; the oldest parts are
                removed first.
            num_threads: The decoding threads.

        Raises:
            DamagedError: A part is damaged.
        """
        self.num_views = num_views
        self.num_computed = 0
        self._vision = vision
        self._views = views
        # Everything besides the bytes that a feature depends on, and whether an image is accepted.
        name = f"{fingerprint[:16]}-{vision.name}-{views.name}"
        self._rows = RowCache(folder / name, key_bytes=KEY_BYTES, max_bytes=max_bytes)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._decoded = {key[:IMAGE_BYTES].tobytes() for key in self._rows.stored_keys}

    def features(self, images: Sequence[bytes], views: Sequence[int]) -> Tensor:
        """The features of one crop of each image.

        Args:
            images: The bytes of the image files.
            views: The number of each image's crop, in 0 … num_views - 1.

        Returns:
            float32 [images, dim].

        Raises:
            DamagedError: An image of a shard no longer decodes.
        """
        digests = list(map(image_key, images))
        keys = list(map(feature_key, digests, views))
        missing: dict[bytes, tuple[bytes, list[int]]] = {}
        for row in np.flatnonzero(~self._rows.knows(keys)).tolist():
            missing_views = missing.setdefault(digests[row], (images[row], []))[1]
            if views[row] not in missing_views:
                missing_views.append(views[row])
        self._compute([(digest, *crops) for digest, crops in missing.items()])
        features = torch.from_numpy(self._rows.rows(keys)).float()
        if self._rows.new_bytes >= PART_BYTES:
            self.flush()
        return features

    def knows(self, image: bytes) -> bool:
        """Whether an image has been through the tower, and so decodes."""
        return image_key(image) in self._decoded

    def flush(self) -> None:
        """Write the features computed since the last flush, and enforce the size limit."""
        self._rows.flush()

    def _compute(self, missing: Sequence[tuple[bytes, bytes, list[int]]]) -> None:
        """Compute missing crops; the next group is decoded while the tower runs on this one."""
        size = self._vision.rows * _PASSES
        groups = [missing[start : start + size] for start in range(0, len(missing), size)]
        decoded = [self._decode(group) for group in groups[:1]]
        for number, group in enumerate(groups):
            if number + 1 < len(groups):
                decoded.append(self._decode(groups[number + 1]))
            crops = torch.cat([future.result() for future in decoded.pop(0)])
            pooled = self._vision(crops).to(torch.float16).cpu().numpy()
            keys = [feature_key(digest, view) for digest, _, views in group for view in views]
            self._rows.add(keys, pooled)
            self._decoded.update(digest for digest, *_ in group)
            self.num_computed += len(keys)

    def _decode(self, group: Sequence[tuple[bytes, bytes, list[int]]]) -> list["Future[Tensor]"]:
        return [self._threads.submit(self._crops, *image) for image in group]

    def _crops(self, key: bytes, data: bytes, views: Sequence[int]) -> Tensor:
        """The given crops of an image: uint8 [views, 3, side, side]."""
        seed = int.from_bytes(key[:8], "little")
        rngs = [np.random.default_rng((VIEW_KEY, seed, view)) for view in views]
        crops = empty_views(len(views), self._views.side)
        self._views(data, rngs, crops)
        return crops
