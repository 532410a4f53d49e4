"""Searches on a GPU find what a search on the CPU finds; without one, `--gpu-device cpu`."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from indexes import faiss_index
from indexes.build import build_index
from indexes.protocol import BLOCK_ROWS

pytestmark = pytest.mark.gpu


@pytest.fixture
def faiss_gpu(gpu: str) -> str:
    if gpu != "cpu" and not faiss_index.sees_gpu():
        pytest.skip("this build of FAISS sees no GPU")
    return gpu


def unit_vectors(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_an_exact_search_on_a_gpu_finds_what_the_cpu_finds(gpu: str) -> None:
    vectors, asked = unit_vectors(5_000, 384, 0), unit_vectors(3_000, 384, 1)
    expected = build_index(vectors, "exact").search(asked, 2)
    found = build_index(vectors, "exact", device=gpu).search(torch.from_numpy(asked).to(gpu), 2)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-5)
    clear = expected.similarity[:, 0] - expected.similarity[:, 1] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.ids[clear, 0], expected.ids[clear, 0])


def test_faiss_on_a_gpu_gives_the_bits_of_an_exact_search_there(faiss_gpu: str) -> None:
    vectors, asked = unit_vectors(5_000, 384, 0), unit_vectors(3_000, 384, 1)
    vectors[700:720] = vectors[5]
    on_device = torch.from_numpy(asked).to(faiss_gpu)
    exact = build_index(vectors, "exact", device=faiss_gpu).search(on_device, 3)
    flat = build_index(vectors, "flat", device=faiss_gpu).search(on_device, 3)
    np.testing.assert_array_equal(flat.similarity, exact.similarity)
    np.testing.assert_array_equal(flat.ids, exact.ids)


@pytest.mark.parametrize("kind", ["exact", "flat", "ivf"])
def test_a_query_finds_the_same_in_any_block_and_thread(faiss_gpu: str, kind: str) -> None:
    index = build_index(unit_vectors(1_000, 384, 0), kind, device=faiss_gpu)
    asked = unit_vectors(3 * BLOCK_ROWS + 7, 384, 1)
    whole = index.search(torch.from_numpy(asked).to(faiss_gpu))
    order = np.random.default_rng(2).permutation(len(asked))
    again = index.search(torch.from_numpy(asked[order]).to(faiss_gpu))
    np.testing.assert_array_equal(again.similarity, whole.similarity[order])
    np.testing.assert_array_equal(again.ids, whole.ids[order])
    with ThreadPoolExecutor(1) as thread:  # as those that write shards
        few = thread.submit(index.search, torch.from_numpy(asked[:7]).to(faiss_gpu)).result()
    np.testing.assert_array_equal(few.similarity, whole.similarity[:7])


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_arrays_of_many_blocks_find_what_tensors_find(faiss_gpu: str, kind: str) -> None:
    """They pass through one buffer, which may be filled again only when its copy has ended."""
    index = build_index(unit_vectors(2_000, 384, 0), kind, device=faiss_gpu)
    asked = unit_vectors(20 * BLOCK_ROWS, 384, 1)
    from_tensor = index.search(torch.from_numpy(asked).to(faiss_gpu))
    from_array = index.search(asked)
    np.testing.assert_array_equal(from_array.similarity, from_tensor.similarity)
    np.testing.assert_array_equal(from_array.ids, from_tensor.ids)


def test_a_part_of_the_entries_is_enough_for_nearly_all_nearest_ones(faiss_gpu: str) -> None:
    centres = unit_vectors(60, 32, 0)[np.random.default_rng(0).integers(60, size=3_000)]
    vectors = centres + 0.6 * unit_vectors(3_000, 32, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = build_index(vectors, "exact", device=faiss_gpu).search(vectors[::5])
    found = build_index(vectors, "ivf", device=faiss_gpu).search(vectors[::5])
    assert (found.ids == exact.ids).mean() > 0.9
