"""FAISS behind the protocol; the only file that imports faiss.

Flat proposes the nearest ones of all; IVF and HNSW look at a part of the entries only, and may miss
the nearest one.
"""

import logging
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch

from indexes.proposals import ProposedIndex, as_array, own_products, products_on_device
from indexes.protocol import BLOCK_ROWS, Float32, Int64, Queries

# IVF: 4 sqrt(entries) lists of at least so many entries, and the share of them that is searched.
LISTS_PER_ROOT = 4
MIN_LIST_ENTRIES = 39
SEARCHED_LISTS = 1 / 16
MIN_SEARCHED_LISTS = 8
# HNSW: links per entry, and how many candidates are kept while linking and while searching.
LINKS = 32
KEPT_WHILE_LINKING = 80
KEPT_WHILE_SEARCHING = 128

logger = logging.getLogger(__name__)


class FaissIndex(ProposedIndex):
    """Nearest entries by FAISS: on a GPU where this build of FAISS sees one, else on the CPU.

    IVF and HNSW may give an entry that is near but not the nearest.
    """

    def __init__(
        self, vectors: Float32, kind: str = "flat", *, device: str | torch.device = "cpu"
    ) -> None:
        """Index the vectors.

        Args:
            vectors: float32 [entries, dim], unit norm.
            kind: `flat`, `ivf` or `hnsw`.
            device: Where queries are made: of several GPUs that one is taken.
        """
        super().__init__(vectors, kind)
        self._index = _BUILDERS[kind](self._distinct)
        # A hierarchy of links has no GPU form in FAISS.
        number = torch.device(device).index
        self._gpu = None if kind == "hnsw" else _on_gpu(self._index, self._distinct, number)

    def _candidates(self, block: Queries, count: int) -> tuple[Float32, Int64]:
        """Similarities and places in `_distinct` of each query's candidates; never -1."""
        if self._gpu is not None:
            try:
                return self._gpu.candidates(block, count)
            except RuntimeError as error:  # torch's and FAISS's own, for want of memory
                _warn_of_gpu(error)
                self._gpu = None
        queries = as_array(block)
        faiss.omp_set_num_threads(torch.get_num_threads())  # it has a pool of its own
        places = self._index.search(queries, count)[1]
        similarity = own_products(self._distinct, queries, places)
        return _filled(similarity, places, queries, self._distinct)


def _filled(
    similarity: Float32, places: Int64, block: Float32, vectors: Float32
) -> tuple[Float32, Int64]:
    """The candidates; a query that was given too few of them is compared with every entry."""
    rows = np.flatnonzero((places < 0).any(axis=1))
    if len(rows):
        products = block[rows] @ vectors.T
        places[rows] = np.argsort(-products, axis=1, kind="stable")[:, : places.shape[1]]
        similarity[rows] = own_products(vectors, block[rows], places[rows])
    return similarity, places


def _flat(vectors: Float32) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _ivf(vectors: Float32) -> faiss.Index:
    num_entries, dim = vectors.shape
    num_lists = int(min(LISTS_PER_ROOT * num_entries**0.5, num_entries / MIN_LIST_ENTRIES))
    num_lists = max(num_lists, 1)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1  # FAISS warns of few entries on stdout
    index.nprobe = max(int(num_lists * SEARCHED_LISTS), MIN_SEARCHED_LISTS)
    index.train(vectors)
    index.add(vectors)
    return index


def _hnsw(vectors: Float32) -> faiss.Index:
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = KEPT_WHILE_LINKING
    index.hnsw.efSearch = KEPT_WHILE_SEARCHING
    # Threads link in the order they come: one alone makes the same index every time.
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(vectors)
    finally:
        faiss.omp_set_num_threads(num_threads)
    return index


_BUILDERS: dict[str, Callable[[Float32], faiss.Index]] = {
    "flat": _flat,
    "ivf": _ivf,
    "hnsw": _hnsw,
}


class TorchSearch:
    """An index that is asked with tensors, where they lie: on a GPU, nothing but results return."""

    def __init__(self, index: faiss.Index, vectors: Float32, *, device: str) -> None:
        import faiss.contrib.torch_utils  # noqa: F401 - lets indexes take tensors

        self._index = index
        self._vectors = torch.from_numpy(vectors).to(device)
        self._device = torch.device(device)
        is_gpu = self._device.type == "cuda"
        self._staging = torch.empty((BLOCK_ROWS, vectors.shape[1]), pin_memory=is_gpu)

    def candidates(self, block: Queries, count: int) -> tuple[Float32, Int64]:
        """As `FaissIndex._candidates`; the queries are `BLOCK_ROWS` rows."""
        if not isinstance(block, torch.Tensor):
            block = self._staging.copy_(torch.from_numpy(block))
        queries = block.to(self._device, non_blocking=True)
        _, places = self._index.search(queries, count)
        # A place of -1 reads some row; it is replaced below.
        similarity = products_on_device(self._vectors, queries, places)
        lacking = (places < 0).any(dim=1).nonzero()[:, 0]
        if len(lacking):
            products = queries[lacking] @ self._vectors.T
            best = products.sort(dim=1, descending=True, stable=True)
            places[lacking] = best.indices[:, :count]
            similarity[lacking] = best.values[:, :count]
        return similarity.cpu().numpy(), places.cpu().numpy()


def sees_gpu() -> bool:
    """Whether this build of FAISS, and torch, can use a GPU."""
    # get_num_gpus exists in every build; the GPU classes only in the GPU one.
    return faiss.get_num_gpus() > 0 and torch.cuda.is_available()


def _on_gpu(index: faiss.Index, vectors: Float32, number: int | None) -> TorchSearch | None:
    """The index on a GPU, the current one without a number, where there is one with room for it."""
    if not sees_gpu():
        return None
    try:
        resources = faiss.StandardGpuResources()
        number = torch.cuda.current_device() if number is None else number
        on_gpu: Any = faiss.index_cpu_to_gpu(resources, number, index)
        on_gpu.resources = resources  # lives as long as the index does
        return TorchSearch(on_gpu, vectors, device=f"cuda:{number}")
    except RuntimeError as error:
        _warn_of_gpu(error)
        return None


def _warn_of_gpu(error: RuntimeError) -> None:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    logger.warning("the metadata is searched on the CPU, since the GPU cannot: %s", reason)
