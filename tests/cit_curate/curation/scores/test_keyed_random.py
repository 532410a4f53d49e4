"""Generators made together are those that `default_rng` makes one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.curation.scores.keyed_random import keyed_generators, keyed_uniform

WORDS = st.integers(0, (1 << 32) - 1)


def draws(generator: np.random.Generator) -> list[object]:
    # One 32-bit draw leaves half a word behind, which must not reach the next generator.
    return [generator.permutation(7).tolist(), int(generator.integers(5)), generator.random()]


def assert_same(key: list[int], rows: list[tuple[int, ...]]) -> None:
    found = [draws(each) for each in keyed_generators(key, *zip(*rows, strict=True))]
    assert found == [draws(np.random.default_rng((*key, *row))) for row in rows]


@given(
    # Seeds of any size; keys shorter and longer than the four words that a seed is mixed in.
    st.lists(st.integers(0, 1 << 100), max_size=4),
    st.integers(1, 4).flatmap(
        lambda width: st.lists(st.tuples(*[WORDS] * width), min_size=1, max_size=5)
    ),
)
def test_they_draw_what_single_generators_draw(key: list[int], rows: list[tuple[int, ...]]) -> None:
    assert_same(key, rows)


@pytest.mark.parametrize("largest", [0, (1 << 32) - 1, 1 << 32, 1 << 40])
def test_words_of_more_than_32_bits_are_no_exception(largest: int) -> None:
    assert_same([3, 11], [(0, 0, 5), (1, 0, largest)])


def test_no_keys_make_no_generator() -> None:
    assert list(keyed_generators([0], [], [])) == []


@given(
    st.lists(st.integers(0, 1 << 100), max_size=4),
    st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5),
)
def test_numbers_are_the_first_words_of_their_seeds(
    key: list[int], rows: list[tuple[int, int]]
) -> None:
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    expected = [np.random.SeedSequence((*key, *row)).generate_state(1)[0] / 2**32 for row in rows]
    assert keyed_uniform(key, *columns).tolist() == expected
