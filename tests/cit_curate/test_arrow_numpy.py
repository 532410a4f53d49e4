"""Columns between NumPy and Arrow: the same values, and no pandas."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.arrow_numpy import arrow_of, numpy_of, repeated, strings_of


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=20), st.integers(0, 20), st.integers(0, 20))
@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint32, np.int64, np.uint64])
def test_numbers_and_booleans_there_and_back(dtype, numbers, start, length):
    values = np.array(numbers).astype(dtype)
    array = arrow_of(values)
    assert array.equals(pa.array(values))
    part = array.slice(start, length)
    assert numpy_of(part).dtype == dtype
    assert numpy_of(part).tolist() == part.to_pylist()


def test_chunks_come_as_one():
    chunks = pa.chunked_array([[1, 2], [], [3]], pa.int32())
    assert numpy_of(chunks).tolist() == [1, 2, 3]
    assert numpy_of(chunks.slice(3)).tolist() == []
    assert numpy_of(pa.chunked_array([[True], [False, True]])).tolist() == [True, False, True]
    assert numpy_of(pa.nulls(0, pa.int32())).tolist() == []


@settings(deadline=None)
@given(st.lists(st.text(), max_size=9))
def test_texts_become_strings(texts):
    assert strings_of(texts).equals(pa.array(texts, pa.string()))


def test_a_text_several_times():
    assert repeated("é", 3).to_pylist() == ["é"] * 3
    assert repeated("a", 0).type == pa.string()


PLAIN = """
import sys
from cit_curate.arrow_numpy import *
numpy_of(arrow_of(np.zeros(3, np.bool_))), numpy_of(arrow_of(np.zeros(3))), repeated("a", 2)
numpy_of(pa.chunked_array([], pa.int32()))
sys.exit("pandas" in sys.modules)
"""


def test_pandas_is_not_imported():
    subprocess.run([sys.executable, "-c", PLAIN], check=True)
