"""FAISS behind the protocol; the only file that imports faiss."""

from collections import Counter

import faiss
import numpy as np

from indexes.protocol import Float32, Int64, SearchResult, blocks, check_queries, check_vectors

# Candidates beyond the asked ones. FAISS multiplies matrices, and some kernels (OpenBLAS for
# Haswell) round a row by its place in the matrix: the last bits of what it finds depend on the
# queries beside it. So it only proposes, and near ties are decided by products of their own.
SPARE_CANDIDATES = 4
# 64 MB of float32: entries that the text tower cannot tell apart may be many.
PRODUCTS_AT_ONCE = 1 << 24


class FaissFlatIndex:
    """Exact inner products by FAISS: on a GPU where this build of FAISS sees one, else the CPU."""

    kind = "flat"

    def __init__(self, vectors: Float32) -> None:
        self.vectors = check_vectors(vectors)
        index: faiss.Index = faiss.IndexFlatIP(self.vectors.shape[1])
        # get_num_gpus exists in every build; the GPU classes only in the GPU one.
        if faiss.get_num_gpus() > 0:
            self._resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(self._resources, 0, index)
        index.add(self.vectors)
        self._index = index
        # Of equal vectors FAISS may propose any; with so many candidates, all of them.
        most_equal = max(Counter(map(bytes, self.vectors)).values())
        self._num_spare = SPARE_CANDIDATES + most_equal - 1

    def search(self, queries: Float32, k: int = 1) -> SearchResult:
        """The `k` nearest entries of each query; see `MetadataIndex.search`."""
        num_entries, dim = self.vectors.shape
        queries = check_queries(queries, num_entries=num_entries, dim=dim, k=k)
        num_candidates = min(k + self._num_spare, num_entries)
        parts = [
            self._best(block, self._index.search(block, num_candidates)[1], k)
            for block in blocks(queries)
        ]
        if not parts:
            return SearchResult(np.empty((0, k), np.float32), np.empty((0, k), np.int64))
        similarity = np.concatenate([part[0] for part in parts])[: len(queries)]
        ids = np.concatenate([part[1] for part in parts])[: len(queries)]
        return SearchResult(similarity, ids)

    def _best(self, block: Float32, ids: Int64, k: int) -> tuple[Float32, Int64]:
        """The `k` best of each query's candidates, by products that are computed one by one."""
        similarity = np.empty(ids.shape, dtype=np.float32)
        rows = max(PRODUCTS_AT_ONCE // (ids.shape[1] * block.shape[1]), 1)
        for start in range(0, len(block), rows):
            part = slice(start, start + rows)
            # [queries, candidates, dim] summed over dim
            similarity[part] = (self.vectors[ids[part]] * block[part, None, :]).sum(axis=2)
        # FAISS keeps equal ones in the order of its heap; here the lower id comes first.
        order = np.lexsort((ids, -similarity), axis=1)[:, :k]
        return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1)
