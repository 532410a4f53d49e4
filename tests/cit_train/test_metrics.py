import json
from pathlib import Path

import numpy as np
import pytest

from cit_train.evaluation.metrics import accuracy, mean_per_class, top5

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/metrics.json").read_text())
LOGITS = np.array(GOLDEN["logits"], dtype=np.float32)
TARGETS = np.array(GOLDEN["target"], dtype=np.int64)
# The reference counts in float32, which has 7 digits.
SEVEN_DIGITS = 2e-7


def test_accuracy_is_that_of_the_reference() -> None:
    measured = accuracy(LOGITS.argmax(axis=1), TARGETS)
    assert measured == pytest.approx(GOLDEN["accuracy"], rel=SEVEN_DIGITS)


def test_mean_per_class_is_exactly_that_of_the_reference() -> None:
    assert mean_per_class(LOGITS.argmax(axis=1), TARGETS) == GOLDEN["mean_per_class"]


def test_top5_is_that_of_the_reference() -> None:
    assert top5(LOGITS, TARGETS) == pytest.approx(GOLDEN["top5"], rel=SEVEN_DIGITS)


def test_mean_per_class_leaves_out_classes_without_images() -> None:
    # Class 0: 1 of 3 right; class 7: 1 of 1 right; class 2 is predicted but has no image.
    predictions, targets = np.array([0, 2, 2, 7]), np.array([0, 0, 0, 7])
    assert mean_per_class(predictions, targets) == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert accuracy(predictions, targets) == 50.0


def test_of_equal_logits_top5_takes_the_earlier_class() -> None:
    logits = np.zeros((2, 6), dtype=np.float32)
    assert top5(logits, np.array([4, 5])) == 50.0


def test_top5_of_fewer_classes_is_always_right() -> None:
    assert top5(np.zeros((2, 3), dtype=np.float32), np.array([2, 0])) == 100.0


@pytest.mark.parametrize("metric", [accuracy, mean_per_class])
@pytest.mark.parametrize(("num_predictions", "num_targets"), [(0, 0), (2, 1)])
def test_metrics_refuse_no_images_and_other_images(
    metric: object, num_predictions: int, num_targets: int
) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=f"{num_predictions} predictions and {num_targets}"):
        metric(np.zeros(num_predictions, np.int64), np.zeros(num_targets, np.int64))


def test_top5_refuses_no_images() -> None:
    with pytest.raises(ValueError, match="0 predictions"):
        top5(np.zeros((0, 3), dtype=np.float32), np.zeros(0, np.int64))
