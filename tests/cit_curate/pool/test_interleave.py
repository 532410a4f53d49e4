"""The order of the pools: shares at every caption, and seeking."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.pool.interleave import LARGEST_PERIOD, Interleave

WEIGHTS = st.lists(st.integers(1, 30).map(Fraction), min_size=1, max_size=6)


@given(WEIGHTS)
def test_every_pool_has_given_its_share_to_within_one_caption(weights):
    interleave = Interleave(weights)
    num_captions = np.arange(1, 2 * interleave.period + 3)
    numbers = interleave.numbers(0, len(num_captions))
    for pool, share in enumerate(interleave.shares):
        assert share == weights[pool] / sum(weights)
        off = np.cumsum(numbers == pool) * share.denominator - num_captions * share.numerator
        assert np.abs(off).max() < share.denominator


@given(WEIGHTS, st.integers(0, 10**15), st.integers(0, 200))
def test_seeking_is_walking(weights, start, length):
    interleave = Interleave(weights)
    numbers = interleave.numbers(start, start + length)
    walked = np.bincount(numbers, minlength=len(weights))
    assert (interleave.given(start + length) - interleave.given(start) == walked).all()
    assert interleave.given(start).sum() == start
    one_by_one = [interleave.numbers(n, n + 1)[0] for n in range(start, start + length)]
    assert one_by_one == numbers.tolist()


@given(WEIGHTS, st.integers(1, 500))
def test_captions_until_is_the_first_place_with_so_many(weights, num_given):
    interleave = Interleave(weights)
    for pool in range(len(weights)):
        place = interleave.captions_until(pool, num_given)
        assert interleave.given(place)[pool] == num_given
        assert interleave.given(place - 1)[pool] == num_given - 1


def test_seven_tenths_and_three_tenths_are_spread_out():
    assert Interleave([Fraction("0.7"), Fraction("0.3")]).numbers(0, 10).tolist() == [
        *(0, 1, 0, 0, 0, 1, 0, 0, 1, 0)
    ]


def test_shares_without_a_small_common_denominator_are_rounded_to_ten_thousandths():
    shares = Interleave([Fraction("0.333333"), Fraction("0.333333"), Fraction("0.333334")]).shares
    assert sum(shares) == 1
    assert {share.denominator for share in shares} <= {LARGEST_PERIOD, 5_000, 2_500, 1_250, 625}
    assert all(abs(share - Fraction(1, 3)) < Fraction(1, LARGEST_PERIOD) for share in shares)


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, 99_999]])
def test_weights_that_make_no_share_are_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        Interleave([Fraction(weight) for weight in weights])
