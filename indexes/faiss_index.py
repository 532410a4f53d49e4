"""FAISS behind the protocol; the only file that imports faiss."""

import faiss
import numpy as np

from indexes.protocol import Float32, Int64, SearchResult, blocks, check_queries, check_vectors


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

    def search(self, queries: Float32, k: int = 1) -> SearchResult:
        """The `k` nearest entries of each query; see `MetadataIndex.search`."""
        num_entries, dim = self.vectors.shape
        queries = check_queries(queries, num_entries=num_entries, dim=dim, k=k)
        parts = [self._index.search(block, k) for block in blocks(queries)]
        if not parts:
            return SearchResult(np.empty((0, k), np.float32), np.empty((0, k), np.int64))
        similarity = np.concatenate([part[0] for part in parts])[: len(queries)]
        ids = np.concatenate([part[1] for part in parts])[: len(queries)]
        return SearchResult(*_lower_id_first(similarity, ids))


def _lower_id_first(similarity: Float32, ids: Int64) -> tuple[Float32, Int64]:
    """Order equal similarities by id: FAISS keeps them in the order of its heap."""
    order = np.lexsort((ids, -similarity), axis=1)
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1)
