"""The matrix product in torch: the reference that every other backend must equal."""

import numpy as np
import torch

from indexes.protocol import Float32, SearchResult, blocks, check_queries, check_vectors


class ExactIndex:
    """Every query against every entry."""

    kind = "exact"

    def __init__(self, vectors: Float32, *, device: str = "cpu") -> None:
        self.vectors = check_vectors(vectors)
        self._columns = torch.from_numpy(self.vectors).to(device).T

    def search(self, queries: Float32, k: int = 1) -> SearchResult:
        """The `k` nearest entries of each query; see `MetadataIndex.search`."""
        num_entries, dim = self.vectors.shape
        queries = check_queries(queries, num_entries=num_entries, dim=dim, k=k)
        similarity = np.empty((len(queries), k), dtype=np.float32)
        ids = np.empty((len(queries), k), dtype=np.int64)
        start = 0
        for block in blocks(queries):
            stop = min(start + len(block), len(queries))
            product = torch.from_numpy(block).to(self._columns.device) @ self._columns
            # A stable sort keeps the lower id first among equals; k = 1 needs no sort.
            if k == 1:
                best, order = product.max(dim=1, keepdim=True)
            else:
                best, order = product.sort(dim=1, descending=True, stable=True)
            similarity[start:stop] = best[: stop - start, :k].cpu().numpy()
            ids[start:stop] = order[: stop - start, :k].cpu().numpy()
            start = stop
        return SearchResult(similarity, ids)
