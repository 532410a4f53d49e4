"""Vision features of a frozen tower, computed once per crop, from a fixed set of crops per image.

```
CACHE/<fingerprint of tower and crops>/
  part-<hash>.npy       float16 [rows, dim]
  part-<hash>.keys.npy  uint8 [rows, 18]: the first half of the SHA-256 of the image's bytes, and
                        the number of the crop, little endian
```
A feature depends only on the image's bytes and the number of the crop. Forward passes have a fixed
number of rows, and a fresh feature is rounded to float16 like one read from disk. So it does not
matter when a feature is computed, or whether it is removed and computed again.
"""

import hashlib
import tokenize
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import atomic_file
from cit_train.models.pooled_vision import PooledVision
from cit_train.streaming.views import ViewMaker, empty_views

IMAGE_BYTES = 16
KEY_BYTES = IMAGE_BYTES + 2
VIEW_KEY = 41
# Features are kept in memory until they fill a part of this size.
PART_BYTES = 32 << 20
# What NumPy raises for a damaged file: its header is parsed as Python.
_NOT_AN_ARRAY = (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError)
# Forward passes whose crops are decoded together.
_PASSES = 8

Float16 = npt.NDArray[np.float16]


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
        self._max_bytes = max_bytes
        # Everything besides the bytes that a feature depends on, and whether an image is accepted.
        self._folder = folder / f"{fingerprint[:16]}-{vision.name}-{views.name}"
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._decoded: set[bytes] = set()
        self._fresh: dict[bytes, Float16] = {}
        self._fresh_bytes = 0
        self._locations: dict[bytes, tuple[str, int]] = {}
        self._parts: dict[str, Float16] = {}
        for path in sorted(self._folder.glob("part-*.keys.npy")):
            self._open_part(path)

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
        missing: dict[bytes, tuple[bytes, list[int]]] = {}
        keys = []
        for image, view in zip(images, views, strict=True):
            digest = image_key(image)
            key = feature_key(digest, view)
            keys.append(key)
            if key not in self._fresh and key not in self._locations:
                missing_views = missing.setdefault(digest, (image, []))[1]
                if view not in missing_views:
                    missing_views.append(view)
        self._compute([(digest, *crops) for digest, crops in missing.items()])
        rows = torch.from_numpy(np.stack([self._row(key) for key in keys])).float()
        if self._fresh_bytes >= PART_BYTES:
            self.flush()
        return rows

    def knows(self, image: bytes) -> bool:
        """Whether an image has been through the tower, and so decodes."""
        return image_key(image) in self._decoded

    def flush(self) -> None:
        """Write the features computed since the last flush, and enforce the size limit."""
        if not self._fresh:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(self._fresh), dtype=np.uint8).reshape(-1, KEY_BYTES)
        values = np.stack(list(self._fresh.values()))
        path = self._folder / _part_name(keys, values)
        # The keys are written last: a part exists once they do.
        for target, array in ((values_path(path), values), (path, keys)):
            with atomic_file(target) as temporary, temporary.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
        self._fresh = {}
        self._fresh_bytes = 0
        self._open_part(path)
        self._remove_oldest()

    def _row(self, key: bytes) -> Float16:
        if key in self._fresh:
            return self._fresh[key]
        part, row = self._locations[key]
        value: Float16 = self._parts[part][row]
        return value

    def _open_part(self, path: Path) -> None:
        try:
            keys, values = load_part(path)
        except FileNotFoundError:
            return  # another run that shares the folder has just removed it
        self._parts[path.name] = values
        for row, key in enumerate(keys):
            name = key.tobytes()
            self._locations[name] = (path.name, row)
            self._decoded.add(name[:IMAGE_BYTES])

    def _remove_oldest(self) -> None:
        """Remove whole parts, the oldest first, until the folder is within the size limit."""
        if self._max_bytes is None:
            return
        parts = []
        for path in self._folder.parent.glob("*/part-*.keys.npy"):
            try:
                stat, num_bytes = path.stat(), values_path(path).stat().st_size
            except FileNotFoundError:  # removed by another run
                continue
            parts.append((stat.st_mtime_ns, str(path), stat.st_size + num_bytes))
        total = sum(num_bytes for *_, num_bytes in parts)
        removed = set()
        for _, name, num_bytes in sorted(parts):
            if total <= self._max_bytes:
                break
            path = Path(name)
            path.unlink(missing_ok=True)
            values_path(path).unlink(missing_ok=True)
            total -= num_bytes
            if path.parent == self._folder:
                removed.add(path.name)
                self._parts.pop(path.name, None)  # a mapped file would keep its disk space
        if removed:
            self._locations = {
                key: (part, row)
                for key, (part, row) in self._locations.items()
                if part not in removed
            }

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
            self._fresh.update(zip(keys, pooled, strict=True))
            self._fresh_bytes += pooled.nbytes
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


def load_part(path: Path) -> tuple[npt.NDArray[np.uint8], Float16]:
    """The keys in the file `path` of a part, and its features, memory-mapped.

    Raises:
        DamagedError: One of the two files has changed since it was written.
        FileNotFoundError: One of the two files is missing.
    """
    features = values_path(path)
    try:
        keys = np.load(path, allow_pickle=False)
        values = np.load(features, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except _NOT_AN_ARRAY as error:
        raise DamagedError(
            f"{features} is damaged: {error}; remove the part, and it will be rebuilt"
        ) from error
    if _part_name(keys, values) != path.name:
        raise DamagedError(f"{features} has changed since it was written; remove it")
    if len(keys) != len(values):
        raise DamagedError(
            f"{features} does not match {path.name}; remove both, and they will be rebuilt"
        )
    return keys, values


def values_path(keys_path: Path) -> Path:
    """The file of features of a part, from the path of its keys."""
    return keys_path.with_name(keys_path.name.replace(".keys", ""))


def _part_name(keys: npt.NDArray[np.uint8], values: Float16) -> str:
    """The name of a part's keys file, which holds the hash of the part's content."""
    digest = hashlib.sha256(keys.tobytes())
    digest.update(np.ascontiguousarray(values).data)
    return f"part-{digest.hexdigest()[:16]}.keys.npy"
