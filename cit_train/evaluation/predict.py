"""Zero-shot classification of pictures: the most probable labels first."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import VisionTextDualEncoderModel

from cit_curate.errors import NotFiniteError
from cit_curate.images.decoders import decoders
from cit_curate.images.read import ImageRejected, read_image_bytes
from cit_curate.sources.folder import IMAGE_SUFFIXES
from cit_train.evaluation.class_mapping import ClassLabels
from cit_train.evaluation.pooled_images import RejectedImage
from cit_train.evaluation.readers.folder_layout import images_below
from cit_train.models.freeze import with_head
from cit_train.models.pooled_vision import PooledVision
from cit_train.transforms import Normalizer, eval_view, image_statistics

__all__ = ["Guess", "Prediction", "find_images", "predict_images"]

IMAGES_PER_BATCH = 64


@dataclass(frozen=True)
class Guess:
    """One label of a picture.

    Attributes:
        label: The name of a class, or the mapped label of one or several classes.
        similarity: The cosine of picture and class text; the best one of several classes.
        probability: The softmax over all classes of logit scale times cosine; summed over several.
    """

    label: str
    similarity: float
    probability: float


@dataclass(frozen=True)
class Prediction:
    """A picture's labels, the most probable first."""

    path: Path
    guesses: tuple[Guess, ...]


def find_images(paths: Sequence[Path]) -> tuple[list[Path], list[RejectedImage]]:
    """The picture files that paths name: a file itself, or all files below a folder, sorted.

    Hidden files and linked folders are left out. Duplicates appear once.

    Returns:
        The files, and the paths that are neither a file nor a folder with pictures.
    """
    files: list[Path] = []
    rejected: list[RejectedImage] = []
    for path in paths:
        if path.is_dir():
            below = images_below(path)
            files += below
            if not below:
                detail = (
                    f"the folder has no file that ends with {', '.join(sorted(IMAGE_SUFFIXES))}"
                )
                rejected.append(RejectedImage(str(path), "no_image", detail))
        elif path.exists():
            files.append(path)
        else:
            rejected.append(RejectedImage(str(path), "missing_image", "there is no such file"))
    return list(dict.fromkeys(files)), rejected


def predict_images(
    model: VisionTextDualEncoderModel,
    paths: Sequence[Path],
    class_vectors: Tensor,
    labels: ClassLabels,
    *,
    top: int = 5,
    on_image: Callable[[int], None] = lambda done: None,
) -> Iterator[Prediction | RejectedImage]:
    """Classify pictures one after another; an unreadable picture is reported as a reject.

    The result of a picture does not depend on the other pictures.

    Args:
        model: The dual encoder, in eval mode, on any device.
        paths: Image files.
        class_vectors: float32 [classes, dim], unit norm, from `class_features`.
        labels: The labels of the classes.
        top: The maximum number of labels of a picture.
        on_image: Called with the number of pictures done so far.

    Yields:
        A prediction or a reject for each path, in order. Ties go to the earlier label.

    Raises:
        NotFiniteError: A similarity is NaN or infinite; the message names the picture.
    """
    statistics = image_statistics(model.config.vision_config)
    normalizer = Normalizer(statistics.mean, statistics.std)
    vision = PooledVision(model.vision_model, normalizer, model.logit_scale.device)
    scale = model.logit_scale.detach().float().exp().cpu()
    done = 0
    for batch in _decoded(paths, statistics.side):
        views = [view for view in batch if isinstance(view, Tensor)]
        features = iter(_features(model, vision, views) if views else ())
        for view, path in zip(batch, paths[done : done + len(batch)], strict=True):
            if isinstance(view, RejectedImage):
                yield view
            else:
                # similarity: float32 [classes]
                similarity = class_vectors @ next(features)
                yield Prediction(path, _guesses(similarity, scale, labels, top, path))
        done += len(batch)
        on_image(done)


@torch.no_grad()
def _features(
    model: VisionTextDualEncoderModel, vision: PooledVision, views: Sequence[Tensor]
) -> Tensor:
    """float32 [views, dim], unit norm, on the CPU.

    Head and projection run row by row: the last bits of a matrix product depend on its rows.
    """
    below_head = vision(torch.stack(list(views))).to(model.logit_scale.device)
    pooled = [with_head(model.vision_model, row) for row in below_head.unsqueeze(1)]
    projected = torch.cat([model.visual_projection(row) for row in pooled])
    return functional.normalize(projected.float(), dim=-1).cpu()


def _guesses(
    similarity: Tensor, scale: Tensor, labels: ClassLabels, top: int, path: Path
) -> tuple[Guess, ...]:
    """The best labels of one picture; `similarity` is float32 [classes]."""
    if not similarity.isfinite().all():
        raise NotFiniteError(
            f"the similarities of {path} have a NaN or an infinity; the model is broken"
        )
    label_of = torch.tensor(labels.label_of)
    # float64: rounding in the sum over a thousand classes must not reach the digits shown
    probability = torch.softmax(scale.double() * similarity.double(), dim=0)
    summed = torch.zeros(len(labels.labels), dtype=torch.float64).index_add_(
        0, label_of, probability
    )
    best = torch.full((len(labels.labels),), -2.0).scatter_reduce_(
        0, label_of, similarity, reduce="amax"
    )
    order = torch.argsort(summed, descending=True, stable=True)[:top].tolist()
    return tuple(Guess(labels.labels[at], float(best[at]), float(summed[at])) for at in order)


def _decoded(paths: Sequence[Path], side: int) -> Iterator[list[Tensor | RejectedImage]]:
    """Batches of views, uint8 [3, side, side], in order."""
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode") as threads:
        for start in range(0, len(paths), IMAGES_PER_BATCH):
            batch = paths[start : start + IMAGES_PER_BATCH]
            yield list(threads.map(lambda path: _view(path, side), batch))


def _view(path: Path, side: int) -> Tensor | RejectedImage:
    # Resolved: unlike a pool's, these paths are the user's own, and may be links.
    real = path.resolve()
    try:
        return eval_view(decoders().read_image(read_image_bytes(real.parent, real.name)), side=side)
    except ImageRejected as error:
        return RejectedImage(str(path), error.reason, error.detail)
