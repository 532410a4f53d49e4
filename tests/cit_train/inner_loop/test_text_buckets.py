import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_train.inner_loop.text_buckets import length_buckets


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 4))
def test_no_other_split_has_less_padding(lengths: list[int], num_buckets: int) -> None:
    values = np.array(lengths)
    buckets = length_buckets(values, num_buckets)
    assert 1 <= len(buckets) <= num_buckets
    assert sorted(np.concatenate(buckets).tolist()) == list(range(len(lengths)))
    tokens = sum(len(rows) * values[rows].max() for rows in buckets)
    in_order, size = np.sort(values), len(values)
    assert tokens == min(
        sum(
            (end - start) * in_order[end - 1] for start, end in itertools.pairwise((0, *cuts, size))
        )
        for number in range(min(num_buckets, size))
        for cuts in itertools.combinations(range(1, size), number)
    )


def test_captions_of_one_length_stay_in_their_order() -> None:
    assert [rows.tolist() for rows in length_buckets(np.array([9, 2, 9, 2]), 3)] == [[1, 3], [0, 2]]
    with pytest.raises(ValueError, match="at least 1"):
        length_buckets(np.array([1]), 0)
