"""Metrics of the tasks, in percent, and their 95 % intervals (docs/method.md, "Evaluation").

Every interval is Wilson's. For plain accuracy it is the textbook one. Any other metric uses an
effective number of images: the number for which a plain share of the same value would have the
metric's variance. So all intervals stay within 0 and 100 and are never empty.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cit_curate.errors import BadInputError
from cit_curate.metadata.tasks import Metric
from cit_curate.records import Bool, Float32, Int64

__all__ = [
    "Interval",
    "MetricInputs",
    "Score",
    "accuracy",
    "mean_per_class",
    "mean_top1_top5",
    "roc_auc",
    "score",
    "top5_hits",
    "wilson_interval",
]

Float64 = npt.NDArray[np.float64]

# The quantile of the normal distribution that leaves 2.5 % on each side.
_Z = 1.959963984540054


class Interval(NamedTuple):
    """The bounds of a 95 % interval, in percent."""

    low: float
    high: float


class Score(NamedTuple):
    """A metric's value and its 95 % interval, in percent."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class MetricInputs:
    """The inputs of all metrics, instead of the large matrix of images by classes.

    Attributes:
        predictions: int64 [images], the class of the highest similarity.
        targets: int64 [images].
        in_top5: bool [images], True = the target is among the five most similar classes.
        margins: float32 [images], the similarity of class 1 minus that of class 0.
    """

    predictions: Int64
    targets: Int64
    in_top5: Bool
    margins: Float32


def score(metric: Metric, inputs: MetricInputs) -> Score:
    """The metric's value and its interval.

    Raises:
        ValueError: There is no image.
        BadInputError: The metric is ROC-AUC, and the images do not have exactly two classes.
    """
    predictions, targets = inputs.predictions, inputs.targets
    if metric == "mean_per_class":
        value = mean_per_class(predictions, targets)
        variance = _variance_per_class(predictions == targets, targets)
    elif metric == "roc_auc":
        value = roc_auc(inputs.margins, targets)
        variance = _variance_of_auc(inputs.margins, targets)
    else:
        right = (predictions == targets).astype(np.float64)
        value = accuracy(predictions, targets)
        if metric == "mean_top1_top5":
            right = (right + inputs.in_top5) / 2
            value = mean_top1_top5(predictions, inputs.in_top5, targets)
        variance = float(right.var()) / len(right)
    share = value / 100
    image_variance = share * (1 - share)
    has_spread = variance > 0 and image_variance > 0
    num_effective = image_variance / variance if has_spread else len(targets)
    return Score(value, wilson_interval(share, num_effective))


def accuracy(predictions: Int64, targets: Int64) -> float:
    """The share of images whose predicted class is right.

    Args:
        predictions: int64 [images], the predicted classes.
        targets: int64 [images].

    Raises:
        ValueError: The lengths differ, or there is no image.
    """
    _check(len(predictions), targets)
    return 100.0 * float(np.mean(predictions == targets))


def mean_per_class(predictions: Int64, targets: Int64) -> float:
    """The mean of the accuracies of the classes that have images.

    Args:
        predictions: int64 [images], the predicted classes.
        targets: int64 [images].

    Raises:
        ValueError: The lengths differ, or there is no image.
    """
    _check(len(predictions), targets)
    right = predictions == targets
    return 100.0 * float(
        np.mean([right[targets == target].mean() for target in np.unique(targets)])
    )


def top5_hits(logits: Float32, targets: Int64) -> Bool:
    """Whether each image's class is among its five highest logits.

    Args:
        logits: float32 [images, classes]; ties go to the earlier class.
        targets: int64 [images].

    Returns:
        bool [images].
    """
    own = np.take_along_axis(logits, targets[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < targets[:, None]
    higher = (logits > own) | ((logits == own) & earlier)
    hits: Bool = higher.sum(axis=1) < 5
    return hits


def mean_top1_top5(predictions: Int64, in_top5: Bool, targets: Int64) -> float:
    """The mean of accuracy and top-5 accuracy (the metric of Kinetics-700).

    Args:
        predictions: int64 [images], the predicted classes.
        in_top5: bool [images], from `top5_hits`.
        targets: int64 [images].

    Raises:
        ValueError: The lengths differ, or there is no image.
    """
    _check(len(in_top5), targets)
    return (accuracy(predictions, targets) + 100.0 * float(np.mean(in_top5))) / 2


def roc_auc(scores: Float32, targets: Int64) -> float:
    """The area under the ROC curve: how often an image of class 1 scores above one of class 0.

    Args:
        scores: float32 [images]; ties count half.
        targets: int64 [images], 0 or 1.

    Raises:
        ValueError: The lengths differ, or there is no image.
        BadInputError: One of the two classes has no image, or there is a third.
    """
    above, _ = _shares(scores, targets)
    return 100.0 * float(above.mean())


def wilson_interval(share: float, num_images: float) -> Interval:
    """Wilson's 95 % interval of a share (Wilson 1927), in percent.

    Args:
        share: A share from 0 to 1.
        num_images: The number of images that it is a share of; need not be whole.

    Raises:
        ValueError: The share or the number is out of range.
    """
    if not 0 <= share <= 1 or not num_images > 0:
        raise ValueError(
            f"share is {share} of {num_images} images; it must be 0 to 1 of more than 0"
        )
    shrink = 1 + _Z**2 / num_images
    centre = (share + _Z**2 / (2 * num_images)) / shrink
    spread = share * (1 - share) / num_images + _Z**2 / (4 * num_images**2)
    half = _Z * math.sqrt(spread) / shrink
    # Rounding would leave 99.99999999999999 of a whole share.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return Interval(100.0 * low, 100.0 * high)


def _variance_per_class(right: Bool, targets: Int64) -> float:
    """The variance of the mean over classes, which are independent of each other."""
    variances = []
    for target in np.unique(targets):
        own = right[targets == target]
        # Laplace's estimate: a class whose few images are all right still has a variance.
        share = (own.sum() + 1) / (len(own) + 2)
        variances.append(share * (1 - share) / len(own))
    return float(np.sum(variances)) / len(variances) ** 2


def _variance_of_auc(scores: Float32, targets: Int64) -> float:
    """The variance of the area (DeLong, DeLong and Clarke-Pearson 1988)."""
    above, below = _shares(scores, targets)
    if min(len(above), len(below)) < 2:
        return 0.0
    return float(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))


def _shares(scores: Float32, targets: Int64) -> tuple[Float64, Float64]:
    """The share of class 0 below each image of class 1, and of class 1 above each of class 0."""
    _check(len(scores), targets)
    classes = np.unique(targets).tolist()
    if classes != [0, 1]:
        raise BadInputError(
            "ROC-AUC needs images of class 0 and of class 1, and of no other; "
            f"these are of {', '.join(map(str, classes))}"
        )
    ones, zeros = np.sort(scores[targets == 1]), np.sort(scores[targets == 0])
    return _share_below(ones, zeros), 1 - _share_below(zeros, ones)


def _share_below(scores: Float32, others: Float32) -> Float64:
    """The share of `others`, sorted, below each score; ties count half."""
    below = np.searchsorted(others, scores, side="left")
    up_to = np.searchsorted(others, scores, side="right")
    return np.asarray((below + up_to) / (2 * len(others)), dtype=np.float64)


def _check(num_rows: int, targets: Int64) -> None:
    if num_rows != len(targets) or num_rows == 0:
        raise ValueError(
            f"there are {num_rows} predictions and {len(targets)} targets; "
            "both must be of the same images, at least one"
        )
