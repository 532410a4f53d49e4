"""FAISS behind the protocol; the only file that imports faiss.

Flat searches all entries. IVF and HNSW search a part of them, and may miss the nearest one.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import faiss
import numpy as np
import torch

from indexes.proposals import ProposedIndex, as_array, own_products, products_on_device
from indexes.protocol import BLOCK_ROWS, Float32, Int64, Queries

# IVF: 4 sqrt(entries) lists of at least MIN_LIST_ENTRIES, and the share of the lists searched.
LISTS_PER_ROOT = 4
MIN_LIST_ENTRIES = 39
SEARCHED_LISTS = 1 / 16
MIN_SEARCHED_LISTS = 8
# Room on a GPU for what one search computes on its way. FAISS takes 1.5 GB by itself, for each
# index; where this is too little, it allocates more.
TEMPORARY_BYTES = 256 << 20
# HNSW: links per entry, and how many candidates are kept while linking and while searching.
LINKS = 32
KEPT_WHILE_LINKING = 80
KEPT_WHILE_SEARCHING = 128

logger = logging.getLogger(__name__)


class FaissIndex(ProposedIndex):
    """Nearest entries by FAISS: on the GPU of the queries, if this build sees it; else on the CPU.

    For queries on a CPU the GPU is left alone, so that the answer is that of an exact search there.
    """

    def __init__(
        self, vectors: Float32, kind: str = "flat", *, device: str | torch.device = "cpu"
    ) -> None:
        """Index the vectors.

        Args:
            vectors: float32 [entries, dim], unit norm.
            kind: `flat`, `ivf` or `hnsw`.
            device: The device of the queries.
        """
        super().__init__(vectors, kind)
        self._index = _BUILDERS[kind](self._distinct)
        self._gpu: TorchSearch | None = None
        if torch.device(device).type == "cuda" and kind != "hnsw":  # FAISS has no HNSW on a GPU
            self._gpu = _on_gpu(self._index, self._distinct, torch.device(device).index)

    def _candidates(self, block: Queries, count: int) -> tuple[Float32, Int64]:
        if self._gpu is not None:
            try:
                return self._gpu.candidates(block, count)
            except RuntimeError as error:  # raised by torch and by FAISS when memory runs out
                _warn_of_gpu(error)
                self._gpu = None
        queries = as_array(block)
        faiss.omp_set_num_threads(torch.get_num_threads())  # FAISS has its own thread pool
        rows = self._index.search(queries, count)[1]
        similarity = own_products(self._distinct, queries, rows)
        return _filled(similarity, rows, queries, self._distinct)


def _filled(
    similarity: Float32, rows: Int64, block: Float32, vectors: Float32
) -> tuple[Float32, Int64]:
    """The candidates; a query with too few of them is compared with every entry."""
    lacking = np.flatnonzero((rows < 0).any(axis=1))
    if len(lacking):
        products = block[lacking] @ vectors.T
        rows[lacking] = np.argsort(-products, axis=1, kind="stable")[:, : rows.shape[1]]
        similarity[lacking] = own_products(vectors, block[lacking], rows[lacking])
    return similarity, rows


def _flat(vectors: Float32) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _ivf(vectors: Float32) -> faiss.Index:
    num_entries, dim = vectors.shape
    num_lists = int(min(LISTS_PER_ROOT * num_entries**0.5, num_entries / MIN_LIST_ENTRIES))
    num_lists = max(num_lists, 1)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1  # else FAISS warns on stdout when entries are few
    index.nprobe = max(int(num_lists * SEARCHED_LISTS), MIN_SEARCHED_LISTS)
    index.train(vectors)
    index.add(vectors)
    return index


def _hnsw(vectors: Float32) -> faiss.Index:
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = KEPT_WHILE_LINKING
    index.hnsw.efSearch = KEPT_WHILE_SEARCHING
    # Threads link entries in the order they run; a single one builds the same index every time.
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
    """A FAISS index searched with tensors on their device; only results are copied to the host."""

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
        # FAISS joins the stream of the current GPU, which in a new thread is number 0.
        with current_gpu(self._device):
            _, rows = self._index.search(queries, count)
        # A row of -1 reads the last vector; it is replaced below.
        similarity = products_on_device(self._vectors, queries, rows)
        lacking = (rows < 0).any(dim=1).nonzero()[:, 0]
        if len(lacking):
            products = queries[lacking] @ self._vectors.T
            best = products.sort(dim=1, descending=True, stable=True)
            rows[lacking] = best.indices[:, :count]
            similarity[lacking] = best.values[:, :count]
        return similarity.cpu().numpy(), rows.cpu().numpy()


def current_gpu(device: torch.device) -> AbstractContextManager[object]:
    """A block in which `device` is this thread's current GPU; without effect for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def sees_gpu() -> bool:
    """Whether both torch and this build of FAISS can use a GPU."""
    # get_num_gpus exists in every build; the GPU classes only in the GPU one.
    return faiss.get_num_gpus() > 0 and torch.cuda.is_available()


def _on_gpu(index: faiss.Index, vectors: Float32, number: int | None) -> TorchSearch | None:
    """The index on GPU `number` (None: the current one); None without a GPU with room for it."""
    if not sees_gpu():
        return None
    try:
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(TEMPORARY_BYTES)
        resources.setPinnedMemory(0)  # queries are on the GPU already, or in our own pinned memory
        number = torch.cuda.current_device() if number is None else number
        on_gpu: Any = faiss.index_cpu_to_gpu(resources, number, index)
        on_gpu.resources = resources  # must live as long as the index
        return TorchSearch(on_gpu, vectors, device=f"cuda:{number}")
    except RuntimeError as error:
        _warn_of_gpu(error)
        return None


def _warn_of_gpu(error: RuntimeError) -> None:
    reason = (str(error).splitlines() or ["no reason given"])[0]
    logger.warning("the metadata is searched on the CPU, since the GPU cannot: %s", reason)
