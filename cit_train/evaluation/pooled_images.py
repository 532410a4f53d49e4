"""The image side of an evaluation, split where the vision tower may stop being frozen.

With a frozen vision tower the pictures are decoded and encoded once (`pooled_images`). Each
evaluation during training then costs only the head, the projection and the class texts. What the
tower returns can be kept for later runs, in float32, by the bytes of each picture's file.
"""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import VisionTextDualEncoderModel

from cit_curate.errors import BadInputError, NotFiniteError
from cit_curate.images.read import ImageRejected
from cit_curate.records import Int64
from cit_curate.reject_limit import RejectLimit
from cit_curate.storage.row_cache import RowCache
from cit_train.config import VisionEngine
from cit_train.evaluation.readers.labelled_images import ImageFiles, Images
from cit_train.models.freeze import with_head
from cit_train.models.pooled_vision import PooledVision
from cit_train.models.vision_engine import choose_engine
from cit_train.transforms import Normalizer, eval_view, image_statistics

__all__ = [
    "PooledImages",
    "RejectedImage",
    "encoding",
    "frozen_vision",
    "open_kept_images",
    "pooled_images",
    "project",
]

_LIMIT = RejectLimit()
IMAGES_PER_BATCH = 64
# Batches that are decoded while the tower encodes another.
BATCHES_AHEAD = 2
# Rows of one pass through head and projection.
IMAGES_PER_BLOCK = 4096
# Of the SHA-256 of a picture's content.
KEY_BYTES = 16


@dataclass(frozen=True)
class RejectedImage:
    """A picture that was left out, and the reason."""

    title: str
    reason: str
    detail: str


@dataclass(frozen=True)
class _Picture:
    """A picture that can be read: its key, and uint8 [3, side, side], None = its vector is kept."""

    key: bytes
    view: Tensor | None


@dataclass(frozen=True)
class PooledImages:
    """The vision tower's outputs below its head, for the pictures that could be read.

    Attributes:
        vectors: float32 [images, width], on the CPU; not normalised.
        rows: int64 [images], the position of each among all pictures.
        rejected: The unreadable pictures, in order.
    """

    vectors: Tensor
    rows: Tensor
    rejected: tuple[RejectedImage, ...]


def pooled_images(
    model: VisionTextDualEncoderModel,
    images: Images | Sequence[Path],
    *,
    rows: Int64 | None = None,
    batch_size: int | None = None,
    num_threads: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    vision: PooledVision | None = None,
    kept: RowCache | None = None,
) -> PooledImages:
    """Decode pictures and encode them with the frozen part of the vision tower.

    The result is valid until that part's weights change. The tower runs in eval mode and float32;
    its modes are restored afterwards. Only a few batches of pixels are in memory at a time.

    Args:
        model: The dual encoder, on any device.
        images: A reader's images, or the paths of image files; at least one.
        rows: int64, the positions of the pictures to use; None = all.
        batch_size: The pictures that are decoded and encoded together; None = as the device allows.
        num_threads: The threads that decode; None = one a core.
        on_batch: Called after each batch with the number of pictures done so far.
        vision: The frozen part of the vision tower; None = that of the model, in PyTorch.
        kept: The vectors of this frozen tower that earlier calls have kept, see `open_kept_images`;
            new ones are added. None = every picture goes through the tower.

    Returns:
        The vectors in the order of the pictures, without those of unreadable ones.

    Raises:
        BadInputError: More than 1 % of the pictures cannot be read.
        NotFiniteError: A vector has a NaN or an infinity; the message names its picture.
    """
    images = ImageFiles(images) if isinstance(images, Sequence) else images
    rows = np.arange(len(images), dtype=np.int64) if rows is None else rows
    if not len(rows):
        raise ValueError("there are no pictures to encode; give at least one path")
    statistics = image_statistics(model.config.vision_config)
    vision = vision or frozen_vision(model, None, batch_size)
    if batch_size is None:
        # Full passes where passes are large (a GPU), enough for all threads where they are small.
        batch_size = max(IMAGES_PER_BATCH, vision.rows)
    vectors: list[Tensor] = []
    used: list[int] = []
    rejected: list[RejectedImage] = []
    seen = 0
    read = partial(_read, images, side=statistics.side, kept=kept)
    with encoding(model):
        for batch in _in_batches(read, rows, batch_size, num_threads):
            pictures = [each for each in batch if isinstance(each, _Picture)]
            used += [
                int(rows[seen + at]) for at, each in enumerate(batch) if isinstance(each, _Picture)
            ]
            rejected += [each for each in batch if isinstance(each, RejectedImage)]
            if pictures:
                vectors.append(_encoded(vision, pictures, kept))
            seen += len(batch)
            if on_batch is not None:
                on_batch(seen)
    _check_rejected(rejected, len(rows))
    pooled = PooledImages(torch.cat(vectors), torch.tensor(used), tuple(rejected))
    broken = (~pooled.vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise NotFiniteError(
            f"the vision tower returns NaN or infinity for {images.title(used[broken[0]])} "
            f"(and {len(broken) - 1} further pictures); its weights are broken"
        )
    if kept is not None:
        kept.flush()
    return pooled


def frozen_vision(
    model: VisionTextDualEncoderModel, engine: VisionEngine | None, batch_size: int | None = None
) -> PooledVision:
    """The frozen part of a model's vision tower, for `pooled_images`.

    Args:
        model: The dual encoder, on any device.
        engine: What runs it, see `choose_engine`; its weights must not change then. None = PyTorch,
            with the weights of the moment.
        batch_size: See `pooled_images`.

    Raises:
        ConfigError: The engine is not installed, or not for the model's device.
    """
    statistics = image_statistics(model.config.vision_config)
    normalizer = Normalizer(statistics.mean, statistics.std)
    device = model.logit_scale.device
    vision = PooledVision(
        model.vision_model,
        normalizer,
        device,
        engine=None if engine is None else choose_engine(engine, "float32", device),
        falls_back=engine == "auto",
    )
    vision.rows = min(vision.rows, batch_size or vision.rows)
    return vision


def open_kept_images(
    folder: Path, fingerprint: str, vision: str, *, max_bytes: int | None
) -> RowCache:
    """The vectors of pictures that evaluations have kept: float32 [pictures, width].

    Args:
        folder: The folder of the cached vision features, shared by towers and runs.
        fingerprint: The fingerprint of the frozen tower and its normalisation.
        vision: The name of the `PooledVision`.
        max_bytes: The size limit of the folder.
    """
    return RowCache(
        folder / f"{fingerprint[:16]}-{vision}-zero-shot",
        key_bytes=KEY_BYTES,
        max_bytes=max_bytes,
        removes_damaged=True,
    )


def project(model: VisionTextDualEncoderModel, pooled: PooledImages) -> Tensor:
    """Image features: pooled vectors through the current head and visual projection.

    Args:
        model: The dual encoder that `pooled` comes from, on any device.
        pooled: The result of `pooled_images`.

    Returns:
        float32 [images, dim], unit norm, on the CPU.
    """
    features = []
    with encoding(model):
        for start in range(0, len(pooled.vectors), IMAGES_PER_BLOCK):
            block = pooled.vectors[start : start + IMAGES_PER_BLOCK]
            pooled_output = with_head(model.vision_model, block.to(model.logit_scale.device))
            projected = model.visual_projection(pooled_output)
            features.append(functional.normalize(projected.float(), dim=-1).cpu())
    return torch.cat(features)


@contextmanager
def encoding(model: VisionTextDualEncoderModel) -> Iterator[None]:
    """Eval mode, float32 and no gradients; each module's mode is restored at the end.

    `no_grad` and not `inference_mode`, because pooled vectors may be trained on later.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.logit_scale.device.type, enabled=False):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _encoded(vision: PooledVision, pictures: Sequence[_Picture], kept: RowCache | None) -> Tensor:
    """The vectors of pictures: float32 [pictures, width], on the CPU."""
    new = [each for each in pictures if each.view is not None]
    encoded = (
        vision(torch.stack([each.view for each in new if each.view is not None])) if new else None
    )
    if kept is None:
        assert encoded is not None  # without kept vectors, every picture has a view
        return encoded
    if encoded is not None:
        kept.add([each.key for each in new], encoded.numpy())
    return torch.from_numpy(kept.rows([each.key for each in pictures]))


def _in_batches(
    read: Callable[[int], _Picture | RejectedImage],
    rows: Int64,
    batch_size: int,
    num_threads: int | None,
) -> Iterator[list[_Picture | RejectedImage]]:
    """What `read` returns for rows, in batches, in order; BATCHES_AHEAD are read ahead."""
    starts = iter(range(0, len(rows), batch_size))
    ahead: deque[list[Future[_Picture | RejectedImage]]] = deque()
    workers = num_threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:

        def submit(start: int) -> None:
            batch = rows[start : start + batch_size].tolist()
            ahead.append([threads.submit(read, row) for row in batch])

        try:
            for start in itertools.islice(starts, BATCHES_AHEAD):
                submit(start)
            while ahead:
                batch = [future.result() for future in ahead.popleft()]
                for start in itertools.islice(starts, 1):
                    submit(start)
                yield batch
        finally:
            # After an error elsewhere nothing waits for the remaining pictures.
            threads.shutdown(wait=False, cancel_futures=True)


def _read(
    images: Images, row: int, *, side: int, kept: RowCache | None
) -> _Picture | RejectedImage:
    """A picture, decoded unless its vector is kept."""
    try:
        key = b""
        if kept is not None:
            key = hashlib.sha256(images.content(row)).digest()[:KEY_BYTES]
            if kept.knows([key])[0]:
                return _Picture(key, None)
        return _Picture(key, eval_view(images.read(row), side=side))
    except ImageRejected as error:
        return RejectedImage(images.title(row), error.reason, error.detail)


def _check_rejected(rejected: list[RejectedImage], num_images: int) -> None:
    if not _LIMIT.is_exceeded(len(rejected), num_seen=num_images):
        return
    shown = "; ".join(f"{image.title}: {image.reason} ({image.detail})" for image in rejected[:3])
    raise BadInputError(
        f"{len(rejected)} of {num_images} pictures cannot be read, more than "
        f"{_LIMIT.max_ratio:.0%}: {shown}{'; …' if len(rejected) > 3 else ''}"
    )
