"""FAISS behind the protocol; the only file that imports faiss.

FAISS proposes candidates, and their products are computed one by one here. It multiplies matrices,
and some kernels (OpenBLAS for Haswell) round a row by its place in the matrix: the last bits of
what it finds depend on the queries beside it. Flat proposes the nearest ones of all; IVF and HNSW
look at a part of the entries only, and may miss the nearest one.
"""

import logging
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import faiss
import numpy as np
import torch

from indexes.protocol import (
    BLOCK_ROWS,
    Float32,
    Int64,
    SearchResult,
    blocks,
    check_queries,
    check_vectors,
)

# Candidates beyond the asked ones: near ties are decided by products of their own.
SPARE_CANDIDATES = 4
# 64 MB of float32.
PRODUCTS_AT_ONCE = 1 << 24

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


class FaissIndex:
    """Nearest entries by FAISS: on a GPU where this build of FAISS sees one, else on the CPU.

    Equal vectors are indexed once; what is found stands for all of them, the lowest id first.
    """

    def __init__(self, vectors: Float32, kind: str = "flat") -> None:
        self.kind = kind
        self.vectors = check_vectors(vectors)
        self._members = _equal_rows(self.vectors)
        self._distinct = self.vectors
        if len(self._members) < len(self.vectors):
            self._distinct = self.vectors[self._members[:, 0]]
        self._index = _BUILDERS[kind](self._distinct)
        # A hierarchy of links has no GPU form in FAISS.
        self._gpu = None if kind == "hnsw" else _on_gpu(self._index, self._distinct)

    def search(self, queries: Float32, k: int = 1) -> SearchResult:
        """The `k` nearest entries of each query; see `MetadataIndex.search`.

        IVF and HNSW may give an entry that is near but not the nearest.
        """
        num_entries, dim = self.vectors.shape
        queries = check_queries(queries, num_entries=num_entries, dim=dim, k=k)
        parts = [self._best(block, k) for block in blocks(queries)]
        if not parts:
            return SearchResult(np.empty((0, k), np.float32), np.empty((0, k), np.int64))
        similarity = np.concatenate([part[0] for part in parts])[: len(queries)]
        ids = np.concatenate([part[1] for part in parts])[: len(queries)]
        return SearchResult(similarity, ids)

    def _best(self, block: Float32, k: int) -> tuple[Float32, Int64]:
        """The `k` best of each query's candidates."""
        num_distinct = len(self._members)
        similarity, places = self._candidates(block, min(k + SPARE_CANDIDATES, num_distinct))
        # [queries, candidates] -> [queries, candidates x equal ones]; no more than k are asked for.
        members = self._members[:, :k]
        ids = members[places].reshape(len(block), -1)
        similarity = np.repeat(similarity, members.shape[1], axis=1)
        similarity[ids < 0] = -np.inf
        # FAISS keeps equal ones in the order of its heap; here the lower id comes first.
        order = np.lexsort((ids, -similarity), axis=1)[:, :k]
        return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def _candidates(self, block: Float32, count: int) -> tuple[Float32, Int64]:
        """Similarities and places in `_distinct` of each query's candidates; never -1."""
        if self._gpu is not None:
            try:
                return self._gpu.candidates(block, count)
            except RuntimeError as error:  # torch's and FAISS's own, for want of memory
                _warn_of_gpu(error)
                self._gpu = None
        places = self._index.search(block, count)[1]
        similarity = _products(self._distinct, block, places)
        return _filled(similarity, places, block, self._distinct)


def _products(vectors: Float32, block: Float32, places: Int64) -> Float32:
    """float32 [queries, candidates]: the products, each computed on its own; -inf for place -1."""
    similarity = np.empty(places.shape, dtype=np.float32)
    rows = max(PRODUCTS_AT_ONCE // (places.shape[1] * block.shape[1]), 1)
    for start in range(0, len(block), rows):
        part = slice(start, start + rows)
        # [queries, candidates, dim] summed over dim
        similarity[part] = (vectors[places[part]] * block[part, None, :]).sum(axis=2)
    similarity[places < 0] = -np.inf
    return similarity


def _filled(
    similarity: Float32, places: Int64, block: Float32, vectors: Float32
) -> tuple[Float32, Int64]:
    """The candidates; a query that was given too few of them is compared with every entry."""
    rows = np.flatnonzero((places < 0).any(axis=1))
    if len(rows):
        products = block[rows] @ vectors.T
        places[rows] = np.argsort(-products, axis=1, kind="stable")[:, : places.shape[1]]
        similarity[rows] = _products(vectors, block[rows], places[rows])
    return similarity, places


def _equal_rows(vectors: Float32) -> Int64:
    """int64 [distinct, most equal]: the rows of each distinct vector, ascending, then -1."""
    groups: dict[bytes, list[int]] = {}
    for row, vector in enumerate(vectors):
        groups.setdefault(blake2b(vector, digest_size=16).digest(), []).append(row)
    members = np.full((len(groups), max(map(len, groups.values()))), -1, np.int64)
    for place, rows in enumerate(groups.values()):
        members[place, : len(rows)] = rows
    return members


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

    def candidates(self, block: Float32, count: int) -> tuple[Float32, Int64]:
        """As `FaissIndex._candidates`; the queries are `BLOCK_ROWS` rows."""
        self._staging.copy_(torch.from_numpy(block))
        queries = self._staging.to(self._device, non_blocking=True)
        _, places = self._index.search(queries, count)
        similarity = torch.empty(places.shape, device=self._device)
        rows = max(PRODUCTS_AT_ONCE // (count * block.shape[1]), 1)
        for start in range(0, len(queries), rows):
            part = slice(start, start + rows)
            # [queries, candidates, dim] summed over dim
            similarity[part] = (self._vectors[places[part]] * queries[part, None, :]).sum(dim=2)
        lacking = (places < 0).any(dim=1).nonzero()[:, 0]
        if len(lacking):
            products = queries[lacking] @ self._vectors.T
            best = products.sort(dim=1, descending=True, stable=True)
            places[lacking] = best.indices[:, :count]
            similarity[lacking] = best.values[:, :count]
        return similarity.cpu().numpy(), places.cpu().numpy()


def _on_gpu(index: faiss.Index, vectors: Float32) -> TorchSearch | None:
    """The index on the first GPU, where there is one with room for it."""
    # get_num_gpus exists in every build; the GPU classes only in the GPU one.
    if faiss.get_num_gpus() == 0 or not torch.cuda.is_available():
        return None
    try:
        resources = faiss.StandardGpuResources()
        on_gpu: Any = faiss.index_cpu_to_gpu(resources, 0, index)
        on_gpu.resources = resources  # lives as long as the index does
        return TorchSearch(on_gpu, vectors, device="cuda:0")
    except RuntimeError as error:
        _warn_of_gpu(error)
        return None


def _warn_of_gpu(error: RuntimeError) -> None:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    logger.warning("the metadata is searched on the CPU, since the GPU cannot: %s", reason)
