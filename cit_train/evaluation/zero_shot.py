"""Zero-shot: pictures against the texts of their classes (docs/method.md, "Evaluation")."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from cit_curate.errors import NotFiniteError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.metadata.tasks import Metric
from cit_curate.records import Int64
from cit_curate.text_encoder.tokenizer import tokenize
from cit_train.evaluation.metrics import (
    Answers,
    Interval,
    accuracy,
    mean_per_class,
    score,
    top5_hits,
)
from cit_train.evaluation.prompts import NAME_ONLY
from cit_train.evaluation.readers.pooled_images import (
    PooledImages,
    RejectedImage,
    encoding,
    pooled_images,
    project,
)

__all__ = [
    "NAME_ONLY",
    "ClassAccuracy",
    "Evaluation",
    "Labelled",
    "PooledImages",
    "RejectedImage",
    "class_features",
    "evaluate",
    "pooled_images",
    "project",
]

TEXTS_PER_PASS = 256
# Rows of the similarity matrix at once: 4096 images of 1,000 classes are 16 MB.
IMAGES_PER_BLOCK = 4096


class Labelled(Protocol):
    """The labels of pictures: `ImageFolder` and `LabelledImages`."""

    @property
    def classes(self) -> tuple[MetadataEntry, ...]:
        """To choose from."""

    @property
    def targets(self) -> Int64:
        """Each picture's position in `classes`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What each class is called where the pictures lie."""


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
        metric: The task's, which `value` and `interval` are of.
        value: Of the metric.
        interval: 95 %, of the metric.
        chance: What guessing gives, 100 / num_classes.
        per_class: By class name, in the order of the classes that have pictures; a name that
            several classes share is followed by its folder.
        num_rejected: Pictures that could not be read.
    """

    num_images: int
    num_classes: int
    accuracy: float
    mean_per_class: float
    metric: Metric
    value: float
    interval: Interval
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
    # By length, so that a pass pads its texts to about their own length.
    distinct = sorted(dict.fromkeys(itertools.chain.from_iterable(texts)), key=len)
    row_of = {text: row for row, text in enumerate(distinct)}
    device = model.logit_scale.device
    encoded = []
    with encoding(model):
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


def evaluate(
    model: VisionTextDualEncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    pooled: PooledImages,
    labelled: Labelled,
    *,
    prompts: Sequence[str] = NAME_ONLY,
    max_text_length: int = 32,
    metric: Metric = "accuracy",
) -> Evaluation:
    """Classify pictures by the nearest class text; of equal ones the earlier.

    Args:
        model: The dual encoder as it is now.
        tokenizer: Of its text tower.
        pooled: `pooled_images` of the pictures or of a part of them.
        labelled: The pictures' classes and labels.
        prompts: Texts with `{}` for the class name.
        max_text_length: Tokens that a prompt is cut to.
        metric: The task's.

    Raises:
        NotFiniteError: The vector of a class or a picture is not finite.
        BadInputError: ROC-AUC is asked of pictures that are of one class.
    """
    classes = class_features(
        model, tokenizer, labelled.classes, prompts, max_text_length=max_text_length
    )
    targets = labelled.targets[pooled.rows.numpy()]
    answers = _answers(project(model, pooled), classes, targets)
    right = answers.predictions == targets
    found = score(metric, answers)
    return Evaluation(
        num_images=len(targets),
        num_classes=len(labelled.classes),
        accuracy=accuracy(answers.predictions, targets),
        mean_per_class=mean_per_class(answers.predictions, targets),
        metric=metric,
        value=found.value,
        interval=found.interval,
        chance=100.0 / len(labelled.classes),
        per_class={
            _class_title(labelled, target): ClassAccuracy(
                num_images=int((targets == target).sum()),
                accuracy=100.0 * float(right[targets == target].mean()),
            )
            for target in np.unique(targets).tolist()
        },
        num_rejected=len(pooled.rejected),
    )


def _answers(images: Tensor, classes: Tensor, targets: Int64) -> Answers:
    """Predictions of images, a block at a time: the matrix of all similarities may be large."""
    predictions, in_top5, margins = [], [], []
    for start in range(0, len(images), IMAGES_PER_BLOCK):
        rows = slice(start, start + IMAGES_PER_BLOCK)
        # similarity: float32 [images of the block, classes]
        similarity = images[rows] @ classes.T
        if not similarity.isfinite().all():
            raise NotFiniteError(
                "image features have a NaN or an infinity; the projection is broken"
            )
        values = similarity.numpy()
        predictions.append(values.argmax(axis=1))
        in_top5.append(top5_hits(values, targets[rows]))
        # Class 1 against class 0; with a single class there is nothing to compare.
        margins.append(values[:, min(1, len(classes) - 1)] - values[:, 0])
    return Answers(
        predictions=np.concatenate(predictions),
        targets=targets,
        in_top5=np.concatenate(in_top5),
        margins=np.concatenate(margins),
    )


def _class_title(labelled: Labelled, target: int) -> str:
    name = labelled.classes[target].name
    shared = sum(entry.name == name for entry in labelled.classes) > 1
    return f"{name} ({labelled.labels[target]})" if shared else name
