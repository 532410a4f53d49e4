"""Exact and FAISS Flat, their store, and when an index is rebuilt."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.errors import DamagedError
from indexes.protocol import BLOCK_ROWS
from indexes.storage import load_vectors, save_index
from indexes.versioned import VersionedIndex, build_index


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=20, deadline=None)
@given(
    entries=st.integers(1, 60),
    queries=st.integers(0, BLOCK_ROWS + 40),
    k=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_exact_and_flat_agree(entries: int, queries: int, k: int, seed: int) -> None:
    vectors = unit_vectors(entries, 16, seed)
    asked = unit_vectors(queries, 16, seed + 1)
    k = min(k, entries)
    exact = build_index(vectors, "exact").search(asked, k)
    flat = build_index(vectors, "flat").search(asked, k)
    np.testing.assert_allclose(exact.similarity, flat.similarity, atol=1e-6)
    clear = np.abs(np.diff(exact.similarity, axis=1)).min(axis=1, initial=1.0) > 1e-5
    np.testing.assert_array_equal(exact.ids[clear, : k - 1 or 1], flat.ids[clear, : k - 1 or 1])


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_a_query_finds_the_same_whatever_else_is_asked_with_it(kind: str) -> None:
    # FAULTS: E10
    index = build_index(unit_vectors(50, 384, 0), kind)
    queries = unit_vectors(3000, 384, 1)
    whole = index.search(queries)
    order = np.random.default_rng(2).permutation(3000)
    np.testing.assert_array_equal(index.search(queries[order]).similarity, whole.similarity[order])
    few = index.search(queries[:7])
    np.testing.assert_array_equal(few.similarity, whole.similarity[:7])


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_of_equal_entries_the_lower_id_comes_first(kind: str) -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    result = build_index(vectors, kind).search(vectors[[1]], 3)
    assert result.ids[0, :2].tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_of_many_equal_entries_the_lowest_id_comes_first(kind: str) -> None:
    for seed in range(10):
        vectors = unit_vectors(1111, 384, seed)
        equal = np.sort(np.random.default_rng(seed).choice(1111, 12, replace=False))
        vectors[equal] = vectors[equal[0]]
        found = build_index(vectors, kind).search(vectors[equal[:1]], k=3)
        assert found.ids[0].tolist() == equal[:3].tolist()


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_a_query_that_cannot_be_answered_is_refused(kind: str) -> None:
    # FAULTS: E4
    index = build_index(unit_vectors(4, 8, 0), kind)
    with pytest.raises(ValueError, match="NaN"):
        index.search(np.full((1, 8), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="same text tower"):
        index.search(unit_vectors(1, 9, 0))
    with pytest.raises(ValueError, match="4 entries"):
        index.search(unit_vectors(1, 8, 0), 5)


def test_the_index_is_rebuilt_when_its_version_changes_and_only_then(tmp_path: Path) -> None:
    index = VersionedIndex("exact", tmp_path)
    for version in ("a" * 64, "a" * 64, "b" * 64, "b" * 64):
        index.refresh(version, lambda: unit_vectors(3, 8, 0))
    assert index.num_builds == 2
    again = VersionedIndex("exact", tmp_path)
    found = again.refresh("b" * 64, lambda: pytest.fail("it is stored"))
    assert again.num_builds == 0
    np.testing.assert_array_equal(found.vectors, unit_vectors(3, 8, 0))


def test_a_stored_index_with_any_byte_changed_or_cut_is_refused(tmp_path: Path) -> None:
    # FAULTS: E5
    save_index(build_index(unit_vectors(3, 8, 0), "flat"), tmp_path, version="v" * 64)
    path = next(tmp_path.glob("*.npy"))
    whole = path.read_bytes()
    for offset in range(0, len(whole), 7):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(DamagedError):
            load_vectors(tmp_path)
        path.write_bytes(whole[:offset])
        with pytest.raises(DamagedError):
            load_vectors(tmp_path)


def test_a_damaged_index_is_built_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # FAULTS: E5
    VersionedIndex("exact", tmp_path).refresh("a" * 64, lambda: unit_vectors(3, 8, 0))
    next(tmp_path.glob("*.npy")).write_bytes(b"cut")
    index = VersionedIndex("exact", tmp_path)
    with caplog.at_level(logging.WARNING):
        index.refresh("a" * 64, lambda: unit_vectors(3, 8, 0))
    assert index.num_builds == 1
    assert "built anew" in caplog.text
