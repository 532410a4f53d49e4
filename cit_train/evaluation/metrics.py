"""Metrics of the evaluation tasks, in percent (CIT.md, "Evaluation")."""

import numpy as np

from cit_curate.records import Float32, Int64

__all__ = ["accuracy", "mean_per_class", "top5"]


def accuracy(predictions: Int64, targets: Int64) -> float:
    """Share of the images whose predicted class is theirs.

    Args:
        predictions: int64 [images], a class each.
        targets: int64 [images].

    Raises:
        ValueError: The lengths differ, or there is no image.
    """
    _check(len(predictions), targets)
    return 100.0 * float(np.mean(predictions == targets))


def mean_per_class(predictions: Int64, targets: Int64) -> float:
    """Mean over the classes that have images of the share predicted right within each.

    Args:
        predictions: int64 [images], a class each.
        targets: int64 [images].

    Raises:
        ValueError: The lengths differ, or there is no image.
    """
    _check(len(predictions), targets)
    right = predictions == targets
    return 100.0 * float(
        np.mean([right[targets == target].mean() for target in np.unique(targets)])
    )


def top5(logits: Float32, targets: Int64) -> float:
    """Share of the images whose class is among their five highest logits.

    Args:
        logits: float32 [images, classes]; of equal logits the earlier class is the higher.
        targets: int64 [images].

    Raises:
        ValueError: The lengths differ, or there is no image.
    """
    _check(len(logits), targets)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return 100.0 * float(np.mean((best == targets[:, None]).any(axis=1)))


def _check(num_rows: int, targets: Int64) -> None:
    if num_rows != len(targets) or num_rows == 0:
        raise ValueError(
            f"there are {num_rows} predictions and {len(targets)} targets; "
            "both must be of the same images, at least one"
        )
