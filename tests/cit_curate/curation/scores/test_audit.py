"""The audit: an unbiased estimate, an interval that covers, and what it asks for."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from cit_curate.curation.command import _show_run
from cit_curate.curation.scores.audit import REVIEW_CAPTIONS, Audit, _chi_squared
from cit_curate.curation.selection import MIN_RATIO, THRESHOLD
from cit_curate.run.ledger_tables import SCHEMAS


def audited(seed: int, *, kept: int, missed: int, ratio: float) -> Audit:
    """A scan that keeps `kept` and skips `missed` of the same kind and a hundred times as many."""
    rng = np.random.default_rng(seed)
    audit = Audit(heaviest=1 / ratio)
    found = int((rng.random(missed) < ratio).sum())
    weight = np.concatenate([np.ones(kept), np.full(found, 1 / ratio), np.zeros(100 * missed)])
    audit.count(weight.astype(np.float32), weight[weight > 0].astype(np.float32), THRESHOLD)
    return audit


def test_the_estimate_is_right_on_average_and_the_interval_covers() -> None:
    audits = [audited(seed, kept=4_000, missed=200, ratio=0.05) for seed in range(400)]
    recalls = [audit.recall(THRESHOLD) for audit in audits]
    # What is found by chance is kept, too.
    truths = np.array([audit.missed[THRESHOLD].kept for audit in audits]) / 4_200
    assert np.mean([each.estimate for each in recalls]) == pytest.approx(truths.mean(), abs=0.002)
    assert all(each.low <= each.estimate <= each.high <= 1 for each in recalls)
    covered = [r.low <= truth <= r.high for r, truth in zip(recalls, truths, strict=True)]
    assert np.mean(covered) >= 0.94


def test_nothing_found_is_no_proof() -> None:
    audit = audited(0, kept=1_000, missed=0, ratio=0.01)
    audit.skipped = 50_000
    recall = audit.recall(THRESHOLD)
    assert recall.estimate == recall.high == 1.0
    # With no event, a Poisson mean is below 3.69 at 97.5 %.
    assert recall.low == pytest.approx(1_000 / (1_000 + 100 * 3.69), rel=0.01)


def test_nothing_skipped_is_certain() -> None:
    audit = Audit(heaviest=100.0)
    audit.count(np.ones(64, np.float32), np.ones(5, np.float32), THRESHOLD)
    assert audit.recall(THRESHOLD) == (recall := audit.recall(THRESHOLD))
    assert (recall.low, recall.estimate, recall.high) == (1.0, 1.0, 1.0)


def test_a_full_batch_loses_a_place_for_each_one_it_missed() -> None:
    audit = Audit(heaviest=10.0)
    weight = np.array([1, 1, 1, 1, 0, 0, 0, 10], np.float32)
    audit.count(weight, weight[[0, 1, 2, 3, 7]], MIN_RATIO)
    assert audit.missed[MIN_RATIO].missed == pytest.approx(9)
    assert audit.recall(MIN_RATIO).estimate == 0.0  # nine of five cannot be: none is certain
    audit.count(np.ones(100, np.float32), np.ones(85, np.float32), MIN_RATIO)
    assert audit.recall(MIN_RATIO).estimate == pytest.approx(1 - 9 / 90)


def test_caution_follows_the_worst_rule_at_a_review_only() -> None:
    audit = Audit(heaviest=200.0)
    assert audit.review(0, 0.99) == 0
    weight = np.ones(1_000, np.float32)
    audit.count(weight, weight[:500], THRESHOLD)
    audit.count(np.zeros(500, np.float32), weight[:0], THRESHOLD)
    assert audit.review(REVIEW_CAPTIONS - 1, 0.99) == 0
    assert audit.review(REVIEW_CAPTIONS, 0.99) == 1  # 500 kept: too few to show 99 %
    audit.count(np.full(1, 200, np.float32), np.full(1, 200, np.float32), THRESHOLD)
    assert audit.review(REVIEW_CAPTIONS + 1, 0.99) == 1
    assert audit.review(2 * REVIEW_CAPTIONS, 0.99) == 2
    many = np.ones(1_000_000, np.float32)
    audit.count(many, many, THRESHOLD)
    assert audit.review(3 * REVIEW_CAPTIONS, 0.99) == 0


def test_an_audit_is_written_and_read() -> None:
    audit = audited(1, kept=50, missed=30, ratio=0.2)
    assert Audit.from_json(json.loads(json.dumps(asdict(audit)))) == audit


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [(0.975, 2, 7.378), (0.025, 2, 0.0506), (0.975, 20, 34.17), (0.025, 20, 9.591)],
)
def test_chi_squared_is_that_of_the_tables(
    probability: float, freedom: float, quantile: float
) -> None:
    assert _chi_squared(probability, freedom) == pytest.approx(quantile, rel=0.02, abs=0.05)


def test_of_rules_with_equal_recalls_the_one_that_kept_most_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recalls = [
        {"reason": reason, "kept": kept, "missed": 0.0, "estimate": 1.0, "low": low, "high": 1.0}
        for reason, kept, low in (("min_ratio", 3, 0.0), ("threshold", 900, 0.98))
    ]
    row = {
        "scanned": 90_000,
        "kept": 903,
        "selected": 903,
        "skipped": 80_000,
        "recalls": recalls,
        "best_similarity": 0.9,
    }
    rounds = pa.Table.from_pylist([row], schema=SCHEMAS["rounds"])
    _show_run(SimpleNamespace(path="run", read=lambda name: rounds), as_json=False)  # type: ignore[arg-type]
    assert "80,000 captions were ruled out unscored" in (told := capsys.readouterr().err)
    assert "(95 % interval 98.0% to 100.0%)" in told
