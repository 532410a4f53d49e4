"""Exact and FAISS indexes: what they find, alone and side by side, on arrays and tensors."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.engines.workers import open_workers
from indexes import build, faiss_index
from indexes.build import build_index
from indexes.exact import ExactIndex
from indexes.protocol import BLOCK_ROWS, SearchResult
from indexes.recall import recall, similarity_error

KINDS = ["exact", "flat", "ivf", "hnsw"]


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
    # To the last bit, so that the default may be either.
    np.testing.assert_array_equal(exact.similarity, flat.similarity)
    plain = -np.sort(-(asked.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :k]
    np.testing.assert_allclose(exact.similarity, plain, atol=1e-6)
    clear = np.abs(np.diff(exact.similarity, axis=1)).min(axis=1, initial=1.0) > 1e-5
    np.testing.assert_array_equal(exact.ids[clear, : k - 1 or 1], flat.ids[clear, : k - 1 or 1])


@pytest.mark.faults("E10")
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_finds_the_same_whatever_else_is_asked_with_it(kind: str) -> None:
    index = build_index(unit_vectors(50, 384, 0), kind)
    queries = unit_vectors(3000, 384, 1)
    whole = index.search(queries)
    order = np.random.default_rng(2).permutation(3000)
    np.testing.assert_array_equal(index.search(queries[order]).similarity, whole.similarity[order])
    few = index.search(queries[:7])
    np.testing.assert_array_equal(few.similarity, whole.similarity[:7])


@pytest.mark.parametrize("kind", KINDS)
def test_of_equal_entries_the_lower_id_comes_first(kind: str) -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    result = build_index(vectors, kind).search(vectors[[1]], 3)
    assert result.ids[0, :2].tolist() == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_of_many_equal_entries_the_lowest_id_comes_first(kind: str) -> None:
    for seed in range(3 if kind == "hnsw" else 10):
        vectors = unit_vectors(1111, 384, seed)
        equal = np.sort(np.random.default_rng(seed).choice(1111, 12, replace=False))
        vectors[equal] = vectors[equal[0]]
        found = build_index(vectors, kind).search(vectors[equal[:1]], k=3)
        assert found.ids[0].tolist() == equal[:3].tolist()


@pytest.mark.faults("E4")
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_cannot_be_answered_is_refused(kind: str) -> None:
    index = build_index(unit_vectors(4, 8, 0), kind)
    with pytest.raises(ValueError, match="NaN"):
        index.search(np.full((1, 8), np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="same text tower"):
        index.search(unit_vectors(1, 9, 0))
    with pytest.raises(ValueError, match="4 entries"):
        index.search(unit_vectors(1, 8, 0), 5)


@pytest.mark.faults("E4")
@settings(max_examples=20, deadline=None)
@given(
    entries=st.integers(1, 300),
    kinds_of=st.integers(1, 300),
    k=st.integers(1, 20),
    kind=st.sampled_from(["flat", "ivf", "hnsw"]),
    seed=st.integers(0, 99),
)
def test_every_answer_is_an_entry_and_its_own_product(
    entries: int, kinds_of: int, k: int, kind: str, seed: int
) -> None:
    vectors = unit_vectors(kinds_of, 8, seed)
    vectors = vectors[np.random.default_rng(seed).integers(kinds_of, size=entries)]
    asked = unit_vectors(20, 8, seed + 1)
    k = min(k, entries)
    found = build_index(vectors, kind).search(asked, k)
    assert found.ids.min() >= 0
    assert all(len(set(row)) == k for row in found.ids.tolist())
    products = (vectors[found.ids] * asked[:, None]).sum(axis=2)
    np.testing.assert_allclose(found.similarity, products, atol=1e-6)
    # Best first, and the lower id first among equals: with every id of an equal vector below it.
    ranks = list(zip(-found.similarity.ravel(), found.ids.ravel(), strict=True))
    for row in range(len(asked)):
        assert ranks[row * k : row * k + k] == sorted(ranks[row * k : row * k + k])
        equal = np.flatnonzero((vectors == vectors[found.ids[row, 0]]).all(axis=1))
        assert found.ids[row, : len(equal)].tolist() == equal[:k].tolist()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_finds_nearly_all_and_the_same_every_time(kind: str) -> None:
    centres = unit_vectors(60, 32, 0)[np.random.default_rng(0).integers(60, size=3000)]
    vectors = centres + 0.6 * unit_vectors(3000, 32, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = vectors[::5] + 0.5 * unit_vectors(600, 32, 2)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    exact = build_index(vectors, "exact").search(asked, 3)
    found = build_index(vectors, kind).search(asked, 3)
    assert recall(found, exact) > 0.9
    again = build_index(vectors, kind).search(asked, 3)
    np.testing.assert_array_equal(found.ids, again.ids)
    np.testing.assert_array_equal(found.similarity, again.similarity)


def test_recall_and_error_by_hand() -> None:
    exact = SearchResult(np.float32([[0.9, 0.8], [0.7, 0.1]]), np.array([[3, 1], [2, 0]]))
    found = SearchResult(np.float32([[0.9, 0.2], [0.5, 0.1]]), np.array([[3, 7], [5, 0]]))
    assert recall(found, exact) == 0.5
    assert similarity_error(found, exact) == pytest.approx(0.2)
    assert recall(exact, exact) == 1
    with pytest.raises(ValueError, match="exact result"):
        recall(SearchResult(found.similarity[:, :1], found.ids[:, :1]), exact)


@pytest.mark.parametrize("k", [1, 3])
def test_tensors_find_what_arrays_find(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that runs on a GPU, with tensors on the CPU."""
    vectors, asked = unit_vectors(900, 24, 3), unit_vectors(1500, 24, 4)
    vectors[700:720] = vectors[5]
    expected = build_index(vectors, "flat").search(asked, k)
    monkeypatch.setattr(faiss_index, "_on_gpu", tensors_on_the_cpu)
    found = build_index(vectors, "flat", device="cuda").search(asked, k)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_device", [False, True], ids=["arrays inside", "tensors inside"])
def test_queries_may_be_a_tensor(
    kind: str, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "_on_gpu", tensors_on_the_cpu)
    device = "cuda" if on_device and kind != "exact" else "cpu"
    index = build_index(unit_vectors(900, 24, 3), kind, device=device)
    asked = unit_vectors(BLOCK_ROWS + 5, 24, 4)
    expected, found = index.search(asked, 2), index.search(torch.from_numpy(asked), 2)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.similarity, expected.similarity)
    assert index.search(torch.empty((0, 24))).ids.shape == (0, 1)
    with pytest.raises(ValueError, match="query 3 has a NaN"):
        index.search(torch.from_numpy(asked).index_fill(0, torch.tensor([3]), torch.nan))


@pytest.mark.faults("E7")
def test_a_gpu_without_room_leaves_the_search_to_the_cpu_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*_: object) -> None:
        raise RuntimeError("cudaMalloc error out of memory [2]\nat StandardGpuResources")

    vectors, asked = unit_vectors(900, 24, 3), unit_vectors(3000, 24, 4)
    expected = build_index(vectors, "flat").search(asked)
    monkeypatch.setattr(faiss_index, "_on_gpu", tensors_on_the_cpu)
    index = build_index(vectors, "flat", device="cuda")
    monkeypatch.setattr(faiss_index.TorchSearch, "candidates", no_room)
    found = index.search(asked)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.similarity, expected.similarity)
    assert caplog.text.count("out of memory") == 1


@pytest.mark.faults("E7")
def test_a_gpu_that_cannot_take_the_index_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room() -> None:
        raise RuntimeError("cudaMalloc error out of memory [2]")

    monkeypatch.setattr(faiss_index.faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss_index.faiss, "StandardGpuResources", no_room, raising=False)
    monkeypatch.setattr(faiss_index.torch.cuda, "is_available", lambda: True)
    vectors = unit_vectors(30, 8, 0)
    index = build_index(vectors, "flat", device="cuda")
    assert index.search(vectors).ids[:, 0].tolist() == list(range(30))
    assert "searched on the CPU" in caplog.text


def test_queries_on_a_cpu_are_searched_there_though_faiss_sees_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the GPU was asked")

    monkeypatch.setattr(faiss_index, "_on_gpu", refuse)
    vectors, asked = unit_vectors(90, 8, 0), unit_vectors(20, 8, 1)
    exact = build_index(vectors, "exact").search(asked)
    np.testing.assert_array_equal(
        build_index(vectors, "flat").search(asked).similarity, exact.similarity
    )


@pytest.mark.parametrize(("sees_gpu", "kind"), [(True, "flat"), (False, "exact")])
def test_by_default_queries_on_a_gpu_are_not_searched_on_the_cpu(
    sees_gpu: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_the_cpu(vectors: np.ndarray, *, device: str) -> ExactIndex:
        return ExactIndex(vectors)

    monkeypatch.setattr(faiss_index, "sees_gpu", lambda: sees_gpu)
    monkeypatch.setattr(faiss_index, "_on_gpu", tensors_on_the_cpu)
    monkeypatch.setattr(build, "ExactIndex", on_the_cpu)
    assert build.build_index(unit_vectors(30, 8, 0), device="cuda").kind == kind


def test_an_index_on_a_gpu_takes_little_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, int] = {}

    class Resources:
        def setTempMemory(self, size: int) -> None:
            taken["temporary"] = size

        def setPinnedMemory(self, size: int) -> None:
            taken["pinned"] = size

    def no_room(*_: object) -> None:
        raise RuntimeError("cudaMalloc error out of memory [2]")

    monkeypatch.setattr(faiss_index, "sees_gpu", lambda: True)
    monkeypatch.setattr(faiss_index.faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss_index.faiss, "index_cpu_to_gpu", no_room, raising=False)
    build_index(unit_vectors(30, 8, 0), "flat", device="cuda:0")
    assert taken == {"temporary": faiss_index.TEMPORARY_BYTES, "pinned": 0}


def test_faiss_searches_in_the_stream_of_the_gpu_of_its_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new thread's current GPU is number 0, whichever its rank has."""
    entered: list[torch.device] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(faiss_index, "_on_gpu", tensors_on_the_cpu)
    monkeypatch.setattr(faiss_index, "current_gpu", current)
    vectors = unit_vectors(30, 8, 0)
    build_index(vectors, "flat", device="cuda:1").search(vectors)
    assert entered == [torch.device("cpu")]  # of the stand-in


def found_by_faiss(seed: int) -> list[int]:
    """What a process finds; at module level, as a worker is sent it by its name."""
    vectors = unit_vectors(2000, 32, seed)
    return build_index(vectors, "flat").search(vectors[:50]).ids[:, 0].tolist()


@pytest.mark.faults("E6")
@pytest.mark.slow
def test_a_search_in_a_worker_ends_after_one_in_its_parent() -> None:
    threads = faiss_index.faiss.omp_get_max_threads()
    faiss_index.faiss.omp_set_num_threads(2)  # these are what a forked child would wait for
    try:
        here = found_by_faiss(0)
    finally:
        faiss_index.faiss.omp_set_num_threads(threads)
    with ThreadPoolExecutor() as waiting, open_workers(2) as mapped:
        found = waiting.submit(lambda: list(mapped(found_by_faiss, [0, 0])))
        assert found.result(timeout=20) == [here, here]


def tensors_on_the_cpu(
    index: object, vectors: np.ndarray, number: int | None
) -> faiss_index.TorchSearch:
    return faiss_index.TorchSearch(index, vectors, device="cpu")
