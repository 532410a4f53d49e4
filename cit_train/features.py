"""Vision features of a frozen tower, computed once per image over a fixed set of crops.

```
CACHE/<fingerprint of tower and crops>/
  part-<hash>.npy       float16 [images, views, dim]
  part-<hash>.keys.npy  uint8 [images, 16], first half of the SHA-256 of the image's bytes
```
A feature depends on the image's bytes alone: forward passes have a fixed number of rows, and what
was computed a moment ago is rounded to float16 just as what was read from disk.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cit_curate.errors import DamagedError
from cit_train.batches import read_written_image
from cit_train.pooled_vision import PooledVision
from cit_train.transforms import train_view
from indexes.durable import atomic_file

KEY_BYTES = 16
VIEW_KEY = 41

Float16 = npt.NDArray[np.float16]


def image_key(image: bytes) -> bytes:
    """What an image is cached under: the first 16 bytes of its SHA-256."""
    return hashlib.sha256(image).digest()[:KEY_BYTES]


class FeatureCache:
    """Features of the images met so far; new ones reach the disk with `flush`."""

    def __init__(
        self,
        folder: Path,
        vision: PooledVision,
        *,
        fingerprint: str,
        num_views: int,
        side: int,
        max_pixels: int,
        num_threads: int = 2,
    ) -> None:
        self.num_views = num_views
        self.num_computed = 0
        self._vision = vision
        self._side = side
        self._max_pixels = max_pixels
        # All that a feature, or whether an image is accepted, depends on besides its bytes.
        name = f"{fingerprint[:16]}-{vision.device.type}-views{num_views}-side{side}-{max_pixels}"
        self._folder = folder / name
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._known: dict[bytes, Float16] = {}
        self._fresh: dict[bytes, Float16] = {}
        self._load()

    def features(self, images: Sequence[bytes], views: Sequence[int]) -> Tensor:
        """The features of one crop of each image.

        Args:
            images: Image files' bytes.
            views: Which of the image's crops, in 0 … num_views - 1.

        Returns:
            float32 [images, dim].

        Raises:
            ImageRejected: An image does not decode; shards hold only images that do.
        """
        keys = [image_key(image) for image in images]
        missing = {
            key: image for key, image in zip(keys, images, strict=True) if key not in self._known
        }
        self._compute(missing)
        chosen = [self._known[key][view] for key, view in zip(keys, views, strict=True)]
        return torch.from_numpy(np.stack(chosen).astype(np.float32))

    def knows(self, image: bytes) -> bool:
        """Whether an image has been through the tower, and so decodes."""
        return image_key(image) in self._known

    def flush(self) -> None:
        """Write the features computed since the last flush."""
        if not self._fresh:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(self._fresh), dtype=np.uint8).reshape(-1, KEY_BYTES)
        values = np.stack(list(self._fresh.values()))
        keys_name = _part_name(keys, values)
        # The keys are written last: a part counts once they are there.
        for path, array in ((keys_name.replace(".keys", ""), values), (keys_name, keys)):
            with atomic_file(self._folder / path) as temporary, temporary.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
        self._fresh = {}

    def _load(self) -> None:
        for path in sorted(self._folder.glob("part-*.keys.npy")):
            values_path = path.with_name(path.name.replace(".keys.npy", ".npy"))
            try:
                keys = np.load(path, allow_pickle=False)
                values = np.load(values_path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DamagedError(
                    f"{values_path} is damaged: {error}; remove the part, it is made again"
                ) from error
            if _part_name(keys, values) != path.name:
                raise DamagedError(f"{values_path} has changed since it was written; remove it")
            if len(keys) != len(values) or values.shape[1] != self.num_views:
                raise DamagedError(
                    f"{values_path} does not fit {path.name}; remove both, they are made again"
                )
            for key, value in zip(keys, values, strict=True):
                self._known[key.tobytes()] = value

    def _compute(self, missing: dict[bytes, bytes]) -> None:
        # Groups of images that fill forward passes, so that crops never pile up in memory.
        images = list(missing.items())
        group = max(self._vision.rows // self.num_views, 1) * 8
        for start in range(0, len(images), group):
            part = images[start : start + group]
            crops = torch.cat(list(self._threads.map(self._crops, part)))
            pooled = self._vision(crops).to(torch.float16).numpy()
            shaped = pooled.reshape(len(part), self.num_views, -1)
            for (key, _), value in zip(part, shaped, strict=True):
                self._known[key] = value
                self._fresh[key] = value
            self.num_computed += len(part)

    def _crops(self, keyed: tuple[bytes, bytes]) -> Tensor:
        """The fixed crops of an image: uint8 [views, 3, side, side]."""
        key, data = keyed
        image = read_written_image(data, self._max_pixels)
        seed = int.from_bytes(key[:8], "little")
        return torch.stack(
            [
                train_view(image, np.random.default_rng((VIEW_KEY, seed, view)), side=self._side)
                for view in range(self.num_views)
            ]
        )


def _part_name(keys: npt.NDArray[np.uint8], values: Float16) -> str:
    """The name of a part's keys file: it holds the hash of what is in the part."""
    digest = hashlib.sha256(keys.tobytes())
    digest.update(np.ascontiguousarray(values).data)
    return f"part-{digest.hexdigest()[:16]}.keys.npy"
