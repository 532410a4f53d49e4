"""Zero-shot classification: pictures against the texts of their classes (CIT.md, "Evaluation").

With a frozen vision tower the pictures are decoded and encoded once (`pooled_images`); an
evaluation during training then costs a projection and the class texts.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from cit_curate.errors import BadInputError, NotFiniteError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.pool.images import ImageRejected, read_image, read_image_bytes
from cit_curate.text_encoder import tokenize
from cit_train.evaluation.image_folder import ImageFolder
from cit_train.evaluation.metrics import accuracy, mean_per_class
from cit_train.pooled_vision import PooledVision
from cit_train.transforms import Normalizer, eval_view, image_statistics

__all__ = [
    "NAME_ONLY",
    "ClassAccuracy",
    "Evaluation",
    "PooledImages",
    "RejectedImage",
    "class_features",
    "evaluate",
    "pooled_images",
    "project",
]

# `use_template` off: the class name as it is.
NAME_ONLY = ("{}",)

MAX_REJECTED_RATIO = 0.01

IMAGES_PER_BATCH = 64
TEXTS_PER_PASS = 256
# Batches that are being decoded while the tower encodes another.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class RejectedImage:
    """A picture that was left out, and why."""

    path: Path
    reason: str
    detail: str


@dataclass(frozen=True)
class PooledImages:
    """The vision tower's pooled output, before the projection, of the pictures it could read.

    Attributes:
        vectors: float32 [images, vision dim], on the CPU; not normalised.
        rows: int64 [images], position of each in the paths that were given.
        rejected: The others, in the order of the paths.
    """

    vectors: Tensor
    rows: Tensor
    rejected: tuple[RejectedImage, ...]


@dataclass(frozen=True)
class ClassAccuracy:
    """How one class fared: its images, and the percent of them that were predicted right."""

    num_images: int
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """One zero-shot evaluation, in percent.

    Attributes:
        num_images: Pictures that were classified.
        num_classes: Classes to choose from, with or without pictures.
        accuracy: Over the pictures.
        mean_per_class: Over the classes that have pictures.
        chance: What guessing gives, 100 / num_classes.
        per_class: By class name, in the order of the classes that have pictures; a name that
            several classes share is followed by its folder.
        num_rejected: Pictures that could not be read.
    """

    num_images: int
    num_classes: int
    accuracy: float
    mean_per_class: float
    chance: float
    per_class: dict[str, ClassAccuracy]
    num_rejected: int


def class_features(
    model: VisionTextDualEncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[MetadataEntry],
    prompts: Sequence[str],
    *,
    max_text_length: int = 32,
) -> Tensor:
    """The vector of each class: its names in every prompt, encoded with the text projection.

    The features are normalised, averaged over names and prompts, and normalised again. The model
    is in eval mode meanwhile, in float32, and as before afterwards.

    Args:
        model: The dual encoder, on any device.
        tokenizer: Of its text tower.
        classes: At least one.
        prompts: Texts with `{}` for the name, at least one.
        max_text_length: Tokens that a prompt is cut to.

    Returns:
        float32 [classes, dim], unit norm, on the CPU.

    Raises:
        ValueError: There is no class or no prompt.
        NotFiniteError: A class's vector is NaN, infinite or zero; the message names the class.
    """
    texts = [entry.texts(prompts) for entry in classes]
    if not texts or not texts[0]:
        raise ValueError(f"there are {len(classes)} classes and {len(prompts)} prompts; give both")
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(texts)))
    row_of = {text: row for row, text in enumerate(distinct)}
    device = model.logit_scale.device
    encoded = []
    with _encoding(model):
        for start in range(0, len(distinct), TEXTS_PER_PASS):
            batch = tokenize(
                tokenizer,
                distinct[start : start + TEXTS_PER_PASS],
                max_text_length=max_text_length,
            )
            tokens = {name: ids.to(device) for name, ids in batch.items()}
            projected = model.text_projection(model.text_model(**tokens).pooler_output)
            encoded.append(functional.normalize(projected.float(), dim=-1).cpu())
    # vectors: float32 [distinct texts, dim]
    vectors = torch.cat(encoded)
    means = torch.stack([vectors[[row_of[text] for text in group]].mean(dim=0) for group in texts])
    norms = means.norm(dim=-1)
    for entry, norm in zip(classes, norms.tolist(), strict=True):
        if not np.isfinite(norm) or norm == 0:
            raise NotFiniteError(f"the vector of class {entry.name!r} has norm {norm}")
    features: Tensor = means / norms.unsqueeze(-1)
    return features


def pooled_images(
    model: VisionTextDualEncoderModel,
    paths: Sequence[Path],
    *,
    num_threads: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> PooledImages:
    """Decode pictures and encode them with the vision tower, without its projection.

    Valid as long as the vision tower's weights are. The tower is in eval mode meanwhile, in
    float32, and as before afterwards.

    Args:
        model: The dual encoder, on any device.
        paths: Image files, at least one.
        num_threads: That decode; None = as many as there are cores.
        on_batch: Told the pictures looked at so far, after each batch.

    Returns:
        The vectors in the order of the paths. Unreadable pictures are left out and named.

    Raises:
        BadInputError: More than 1 % of the pictures cannot be read.
        NotFiniteError: A vector has a NaN or an infinity; the message names its picture.
    """
    if not paths:
        raise ValueError("there are no pictures to encode; give at least one path")
    statistics = image_statistics(model.config.vision_config)
    normalizer = Normalizer(statistics.mean, statistics.std)
    vision = PooledVision(model.vision_model, normalizer, model.logit_scale.device)
    vectors: list[Tensor] = []
    rows: list[int] = []
    rejected: list[RejectedImage] = []
    seen = 0
    with _encoding(model):
        for batch in _decoded(paths, statistics.side, num_threads or os.cpu_count() or 1):
            views = [view for view in batch if isinstance(view, Tensor)]
            rows += [seen + at for at, view in enumerate(batch) if isinstance(view, Tensor)]
            rejected += [view for view in batch if isinstance(view, RejectedImage)]
            if views:
                vectors.append(vision(torch.stack(views)))
            seen += len(batch)
            if on_batch is not None:
                on_batch(seen)
    _check_rejected(rejected, len(paths))
    found = PooledImages(torch.cat(vectors), torch.tensor(rows), tuple(rejected))
    unusable = (~found.vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if unusable:
        raise NotFiniteError(
            f"the vision tower gives NaN or infinity for {paths[rows[unusable[0]]]} "
            f"(and {len(unusable) - 1} further pictures); its weights are broken"
        )
    return found


def project(model: VisionTextDualEncoderModel, pooled: PooledImages) -> Tensor:
    """Image features: the pooled output through the visual projection as it is now.

    Args:
        model: The dual encoder that `pooled` is of, on any device.
        pooled: From `pooled_images`.

    Returns:
        float32 [images, dim], unit norm, on the CPU.
    """
    with _encoding(model):
        projected = model.visual_projection(pooled.vectors.to(model.logit_scale.device))
    return functional.normalize(projected.float(), dim=-1).cpu()


def evaluate(
    model: VisionTextDualEncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    pooled: PooledImages,
    folder: ImageFolder,
    *,
    prompts: Sequence[str] = NAME_ONLY,
    max_text_length: int = 32,
) -> Evaluation:
    """Classify a folder's pictures by the nearest class text; of equal ones the earlier.

    Args:
        model: The dual encoder as it is now.
        tokenizer: Of its text tower.
        pooled: `pooled_images(model, folder.paths)`.
        folder: The pictures' classes.
        prompts: Texts with `{}` for the class name.
        max_text_length: Tokens that a prompt is cut to.

    Raises:
        NotFiniteError: The vector of a class or a picture is not finite.
    """
    classes = class_features(
        model, tokenizer, folder.classes, prompts, max_text_length=max_text_length
    )
    images = project(model, pooled)
    # similarity: float32 [images, classes]
    similarity = images @ classes.T
    if not similarity.isfinite().all():
        raise NotFiniteError("image features have a NaN or an infinity; the projection is broken")
    predictions = similarity.numpy().argmax(axis=1)
    targets = folder.targets[pooled.rows.numpy()]
    right = predictions == targets
    return Evaluation(
        num_images=len(targets),
        num_classes=len(folder.classes),
        accuracy=accuracy(predictions, targets),
        mean_per_class=mean_per_class(predictions, targets),
        chance=100.0 / len(folder.classes),
        per_class={
            _class_title(folder, target): ClassAccuracy(
                num_images=int((targets == target).sum()),
                accuracy=100.0 * float(right[targets == target].mean()),
            )
            for target in np.unique(targets).tolist()
        },
        num_rejected=len(pooled.rejected),
    )


@contextmanager
def _encoding(model: VisionTextDualEncoderModel) -> Iterator[None]:
    """Eval mode, float32 and no gradients; each module's own mode is restored, whatever happens.

    `no_grad` and not `inference_mode`: pooled vectors may be trained on later.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.logit_scale.device.type, enabled=False):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _decoded(
    paths: Sequence[Path], side: int, num_threads: int
) -> Iterator[list[Tensor | RejectedImage]]:
    """Batches of views uint8 [3, side, side], in order; a bounded number is decoded ahead."""
    starts = iter(range(0, len(paths), IMAGES_PER_BATCH))
    ahead: deque[list[Future[Tensor | RejectedImage]]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as threads:

        def submit(start: int) -> None:
            batch = paths[start : start + IMAGES_PER_BATCH]
            ahead.append([threads.submit(_view, path, side) for path in batch])

        try:
            for start in itertools.islice(starts, BATCHES_AHEAD):
                submit(start)
            while ahead:
                views = [future.result() for future in ahead.popleft()]
                for start in itertools.islice(starts, 1):
                    submit(start)
                yield views
        finally:
            # An error elsewhere must not wait for pictures that nobody will see.
            threads.shutdown(wait=False, cancel_futures=True)


def _view(path: Path, side: int) -> Tensor | RejectedImage:
    try:
        return eval_view(read_image(read_image_bytes(path.parent, path.name)), side=side)
    except ImageRejected as error:
        return RejectedImage(path, error.reason, error.detail)


def _check_rejected(rejected: list[RejectedImage], num_paths: int) -> None:
    if len(rejected) <= MAX_REJECTED_RATIO * num_paths:
        return
    shown = "; ".join(f"{image.path}: {image.reason} ({image.detail})" for image in rejected[:3])
    raise BadInputError(
        f"{len(rejected)} of {num_paths} pictures cannot be read, more than "
        f"{MAX_REJECTED_RATIO:.0%}: {shown}{'; …' if len(rejected) > 3 else ''}"
    )


def _class_title(folder: ImageFolder, target: int) -> str:
    name = folder.classes[target].name
    shared = sum(entry.name == name for entry in folder.classes) > 1
    return f"{name} ({folder.folders[target]})" if shared else name
