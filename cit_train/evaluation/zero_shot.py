"""Zero-shot classification by class texts (docs/method.md, "Evaluation")."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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
    Interval,
    MetricInputs,
    accuracy,
    mean_per_class,
    score,
    top5_hits,
)
from cit_train.evaluation.pooled_images import PooledImages, encoding, project
from cit_train.evaluation.prompts import NAME_ONLY
from cit_train.evaluation.readers.labelled_images import LabelledImages

__all__ = ["ClassAccuracy", "Evaluation", "class_features", "evaluate"]

TEXTS_PER_PASS = 256
# Rows of the similarity matrix at once: 4096 images of 1,000 classes are 16 MB.
IMAGES_PER_BLOCK = 4096


@dataclass(frozen=True)
class ClassAccuracy:
    """The images of one class, and the percentage of them that were predicted right."""

    num_images: int
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """One zero-shot evaluation, in percent.

    Attributes:
        num_images: The pictures that were classified.
        num_classes: The classes to choose from, with or without pictures.
        accuracy: The accuracy over the pictures.
        mean_per_class: The mean accuracy of the classes that have pictures.
        metric: The task's metric.
        value: The value of the metric.
        interval: The 95 % interval of the metric.
        chance: The accuracy of guessing, 100 / num_classes.
        per_class: The accuracies by class name, in class order, of the classes that have pictures;
            a name that several classes share is followed by its folder.
        num_rejected: The pictures that could not be read.
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
    """The vector of each class: its names in every prompt, through the text projection.

    The features are normalised, averaged over names and prompts, and normalised again. The model
    runs in eval mode and float32; its modes are restored afterwards.

    Args:
        model: The dual encoder, on any device.
        tokenizer: The text tower's tokenizer.
        classes: The classes, at least one.
        prompts: The texts with `{}` for the name, at least one.
        max_text_length: The maximum number of tokens of a prompt.

    Returns:
        float32 [classes, dim], unit norm, on the CPU.

    Raises:
        ValueError: There is no class or no prompt.
        NotFiniteError: A class's vector is NaN, infinite or zero; the message names the class.
    """
    texts = [entry.texts(prompts) for entry in classes]
    if not texts or not texts[0]:
        raise ValueError(f"there are {len(classes)} classes and {len(prompts)} prompts; give both")
    # Sorted by length, so that a pass pads its texts little.
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
    labelled: LabelledImages,
    *,
    prompts: Sequence[str] = NAME_ONLY,
    max_text_length: int = 32,
    metric: Metric = "accuracy",
) -> Evaluation:
    """Classify pictures by the nearest class text; ties go to the earlier class.

    Args:
        model: The dual encoder with its current weights.
        tokenizer: The text tower's tokenizer.
        pooled: The `pooled_images` of all or some of the pictures.
        labelled: The pictures with their classes.
        prompts: The texts with `{}` for the class name.
        max_text_length: The maximum number of tokens of a prompt.
        metric: The task's metric.

    Raises:
        NotFiniteError: The vector of a class or a picture is not finite.
        BadInputError: The metric is ROC-AUC, and the pictures do not have exactly two classes.
    """
    classes = class_features(
        model, tokenizer, labelled.classes, prompts, max_text_length=max_text_length
    )
    targets = labelled.targets[pooled.rows.numpy()]
    inputs = _metric_inputs(project(model, pooled), classes, targets)
    right = inputs.predictions == targets
    value, interval = score(metric, inputs)
    return Evaluation(
        num_images=len(targets),
        num_classes=len(labelled.classes),
        accuracy=accuracy(inputs.predictions, targets),
        mean_per_class=mean_per_class(inputs.predictions, targets),
        metric=metric,
        value=value,
        interval=interval,
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


def _metric_inputs(images: Tensor, classes: Tensor, targets: Int64) -> MetricInputs:
    """Predict a block of images at a time: the matrix of all similarities may be large."""
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
    return MetricInputs(
        predictions=np.concatenate(predictions),
        targets=targets,
        in_top5=np.concatenate(in_top5),
        margins=np.concatenate(margins),
    )


def _class_title(labelled: LabelledImages, target: int) -> str:
    name = labelled.classes[target].name
    shared = sum(entry.name == name for entry in labelled.classes) > 1
    return f"{name} ({labelled.labels[target]})" if shared else name
