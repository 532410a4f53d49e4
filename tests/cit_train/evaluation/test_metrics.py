import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from cit_curate.errors import BadInputError
from cit_curate.metadata.tasks import Metric
from cit_train.evaluation.metrics import (
    MetricInputs,
    accuracy,
    mean_per_class,
    mean_top1_top5,
    roc_auc,
    score,
    top5_hits,
    wilson_interval,
)

METRICS: tuple[Metric, ...] = ("accuracy", "mean_per_class", "mean_top1_top5", "roc_auc")


GOLDEN = json.loads((Path(__file__).parents[2] / "golden/metrics.json").read_text())
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
        mean_top1_top5(np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.int64))


def top5(logits: np.ndarray, targets: np.ndarray) -> float:
    return 100.0 * float(top5_hits(logits, targets).mean())


def inputs(logits: np.ndarray, targets: np.ndarray) -> MetricInputs:
    return MetricInputs(
        predictions=logits.argmax(axis=1),
        targets=targets,
        in_top5=top5_hits(logits, targets),
        margins=logits[:, 1] - logits[:, 0],
    )


def test_the_metric_of_kinetics_is_that_of_the_reference() -> None:
    measured = mean_top1_top5(LOGITS.argmax(axis=1), top5_hits(LOGITS, TARGETS), TARGETS)
    assert measured == pytest.approx(GOLDEN["kinetics"], rel=SEVEN_DIGITS)


def test_roc_auc_is_that_of_the_reference() -> None:
    logits = np.array(GOLDEN["binary_logits"], dtype=np.float32)
    targets = np.array(GOLDEN["binary_target"], dtype=np.int64)
    margins = logits[:, 1] - logits[:, 0]
    assert roc_auc(margins, targets) == pytest.approx(GOLDEN["roc_auc"], abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(6, 30), st.integers(40, 120))
def test_metrics_equal_those_of_scikit_learn(seed: int, num_classes: int, num_images: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_images, num_classes)).astype(np.float32)
    # Every class has an image: scikit-learn warns where one is predicted that has none.
    targets = np.arange(num_images) % num_classes
    predictions = logits.argmax(axis=1)
    assert mean_per_class(predictions, targets) == pytest.approx(
        100 * balanced_accuracy_score(targets, predictions)
    )
    labels = np.arange(num_classes)
    assert top5(logits, targets) == pytest.approx(
        100 * top_k_accuracy_score(targets, logits, k=5, labels=labels)
    )
    assert accuracy(predictions, targets) == pytest.approx(
        100 * top_k_accuracy_score(targets, logits, k=1, labels=labels)
    )


@given(st.integers(0, 2**32 - 1), st.integers(2, 50), st.integers(1, 6))
def test_roc_auc_equals_that_of_scikit_learn_also_with_ties(
    seed: int, num_images: int, num_values: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, num_values, num_images).astype(np.float32)
    targets = np.arange(num_images) % 2
    assert roc_auc(scores, targets) == pytest.approx(100 * roc_auc_score(targets, scores))


@pytest.mark.parametrize("targets", [[1, 1, 1], [0, 0, 0], [0, 1, 2]])
def test_roc_auc_needs_both_classes_and_no_third(targets: list[int]) -> None:
    with pytest.raises(BadInputError, match="class 0 and of class 1"):
        roc_auc(np.arange(3, dtype=np.float32), np.array(targets))


def test_wilson_interval_is_the_textbook_one() -> None:
    # 8 of 10 (Agresti and Coull 1998 give the formula): 0.490 to 0.943
    low, high = wilson_interval(0.8, 10)
    assert (round(low, 1), round(high, 1)) == (49.0, 94.3)
    assert wilson_interval(0.0, 10).low == 0.0
    assert wilson_interval(1.0, 10) == (pytest.approx(72.25, abs=0.01), 100.0)


@pytest.mark.parametrize(("share", "num_images"), [(-0.1, 10), (1.1, 10), (0.5, 0)])
def test_wilson_interval_refuses_what_is_no_share(share: float, num_images: float) -> None:
    with pytest.raises(ValueError, match="share"):
        wilson_interval(share, num_images)


@pytest.mark.parametrize("metric", METRICS)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_every_interval_holds_its_value(metric: Metric, seed: int, num_images: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_images, 2 if metric == "roc_auc" else 9)).astype(np.float32)
    found = score(metric, inputs(logits, np.arange(num_images) % logits.shape[1]))
    low, high = found.interval
    assert 0 <= low <= found.value + 1e-9
    assert found.value - 1e-9 <= high <= 100
    assert high - low > 0


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_cover_the_true_value_about_95_times_in_100(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    num_images, num_trials = 120, 400
    num_classes = 2 if metric == "roc_auc" else 8

    def draw(count: int) -> MetricInputs:
        targets = np.arange(count) % num_classes
        logits = rng.normal(size=(count, num_classes)).astype(np.float32)
        # The classes differ in how hard they are.
        logits[np.arange(count), targets] += 0.6 + targets / num_classes
        return inputs(logits, targets)

    truth = score(metric, draw(40_000)).value
    intervals = [score(metric, draw(num_images)).interval for _ in range(num_trials)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.99


def test_the_interval_of_a_perfect_model_is_not_empty() -> None:
    logits = np.eye(6, dtype=np.float32)
    for metric in ("accuracy", "mean_per_class", "mean_top1_top5"):
        found = score(metric, inputs(logits, np.arange(6)))
        assert found.value == 100.0
        assert found.interval.high == 100.0
        assert 50 < found.interval.low < 80
