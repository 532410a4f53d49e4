"""The rules, on values whose answer one can see."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.curation.selection import (
    best_per_entry,
    first_of_each,
    keep_similar,
    suggest_threshold,
)


def kept(similarity: list[float], threshold: float, min_ratio: float) -> tuple[list[int], str]:
    values = np.array(similarity, dtype=np.float32)
    mask, reason = keep_similar(values, threshold=threshold, min_ratio=min_ratio)
    return np.flatnonzero(mask).tolist(), reason


def test_keep_similar_excludes_the_threshold_itself() -> None:
    assert kept([0.4, 0.5, 0.6], 0.5, 0.0) == ([2], "threshold")


def test_a_share_equal_to_min_ratio_is_enough() -> None:
    assert kept([0.9, 0.1, 0.1, 0.1], 0.5, 0.25) == ([0], "threshold")


def test_below_min_ratio_the_best_replace_what_passes() -> None:
    assert kept([0.1, 0.9, 0.3, 0.2], 0.5, 0.5) == ([1, 2], "min_ratio")


def test_the_number_kept_by_min_ratio_is_truncated() -> None:
    assert kept([0.1, 0.2, 0.3], 0.5, 0.6) == ([2], "min_ratio")
    assert kept([0.1, 0.2, 0.3], 0.5, 0.3) == ([], "min_ratio")


@pytest.mark.faults("E10")
def test_ties_at_the_cut_go_to_the_earlier_caption() -> None:
    assert kept([0.2, 0.3, 0.3, 0.3], 0.5, 0.5) == ([1, 2], "min_ratio")


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
    st.floats(-1, 1),
    st.floats(0, 1),
)
def test_either_the_passing_share_suffices_or_exactly_the_best_are_kept(
    similarity: list[float], threshold: float, min_ratio: float
) -> None:
    rows, reason = kept(similarity, threshold, min_ratio)
    if reason == "threshold":
        assert len(rows) / len(similarity) >= min_ratio
    else:
        assert len(rows) == int(min_ratio * len(similarity))
        left = [similarity[row] for row in range(len(similarity)) if row not in rows]
        assert not rows or not left or min(similarity[row] for row in rows) >= max(left)


def test_first_of_each_marks_what_is_neither_seen_nor_repeated() -> None:
    keys = pa.chunked_array([["a", "b", "a", "c"]])
    seen = {"b"}
    assert first_of_each(keys, seen).tolist() == [True, False, False, True]
    assert seen == {"a", "b", "c"}


@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=6), max_size=6))
def test_first_of_each_over_batches_is_looking_at_one_key_after_another(
    batches: list[list[str]],
) -> None:
    seen: set[str] = set()
    earlier: list[str] = []
    for keys in batches:
        fresh = first_of_each(pa.chunked_array([keys], pa.string()), seen)
        for key, is_fresh in zip(keys, fresh, strict=True):
            assert is_fresh == (key not in earlier)
            earlier.append(key)
        assert seen == {*earlier}


def test_best_per_entry_ranks_within_each_entry_and_breaks_ties_by_position() -> None:
    rows = best_per_entry(
        np.array([0.1, 0.9, 0.5, 0.5, 0.7], dtype=np.float32),
        np.array([1, 0, 1, 1, 1]),
        np.array([0, 1, 9, 2, 4]),
        best=2,
    )
    assert rows.tolist() == [1, 4, 3]


def test_suggest_threshold_is_the_highest_that_keeps_enough() -> None:
    histogram = np.zeros(200, dtype=np.int64)
    histogram[[150, 160]] = [5, 2]
    assert suggest_threshold(histogram, 2) == 0.6
    assert suggest_threshold(histogram, 3) == 0.5
    assert suggest_threshold(histogram, 8) is None
