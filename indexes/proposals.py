"""From proposed entries to the nearest ones: what every backend shares.

Some matrix kernels (OpenBLAS for Haswell) round a row by its position in the matrix, so the last
bits of a backend's products depend on the queries beside it. A backend therefore only proposes a
few entries, and their products are computed here, each on its own. Backends that propose the same
entries return the same bits.
"""

from abc import ABC, abstractmethod
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from indexes.protocol import (
    Float32,
    Int64,
    Queries,
    SearchResult,
    blocks,
    check_queries,
    check_vectors,
    tensor_blocks,
)

# Candidates beyond the k requested: near ties are decided by the exact products.
SPARE_CANDIDATES = 4
# Multiplications in one temporary array: 64 MB of float32.
PRODUCTS_AT_ONCE = 1 << 24


class ProposedIndex(ABC):
    """Nearest entries among those that a backend proposes.

    Equal vectors are indexed once. A hit counts for all of them, the lowest id first.
    """

    def __init__(self, vectors: Float32, kind: str) -> None:
        self.kind = kind
        self.vectors = check_vectors(vectors)
        self._members = _equal_rows(self.vectors)
        self._distinct = self.vectors
        if len(self._members) < len(self.vectors):
            self._distinct = self.vectors[self._members[:, 0]]

    def search(self, queries: Queries, k: int = 1) -> SearchResult:
        """The `k` nearest entries of each query; see `MetadataIndex.search`."""
        num_entries, dim = self.vectors.shape
        queries = check_queries(queries, num_entries=num_entries, dim=dim, k=k)
        cut = tensor_blocks(queries) if isinstance(queries, Tensor) else blocks(queries)
        parts = [self._best(block, k) for block in cut]
        if not parts:
            return SearchResult(np.empty((0, k), np.float32), np.empty((0, k), np.int64))
        similarity = np.concatenate([part[0] for part in parts])[: len(queries)]
        ids = np.concatenate([part[1] for part in parts])[: len(queries)]
        return SearchResult(similarity, ids)

    def _best(self, block: Queries, k: int) -> tuple[Float32, Int64]:
        """The `k` best of each query's candidates."""
        num_distinct = len(self._members)
        similarity, rows = self._candidates(block, min(k + SPARE_CANDIDATES, num_distinct))
        # [queries, candidates] -> [queries, candidates x equal vectors], of which k at most matter.
        members = self._members[:, :k]
        ids = members[rows].reshape(len(block), -1)
        similarity = np.repeat(similarity, members.shape[1], axis=1)
        similarity[ids < 0] = -np.inf
        # Ties go to the lower id.
        order = np.lexsort((ids, -similarity), axis=1)[:, :k]
        return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1)

    @abstractmethod
    def _candidates(self, block: Queries, count: int) -> tuple[Float32, Int64]:
        """Similarities of each query's candidates, and their rows in `_distinct`; never -1."""


def own_products(vectors: Float32, block: Float32, rows: Int64) -> Float32:
    """The product of each query with each of its candidates, computed on its own.

    Args:
        vectors: float32 [entries, dim].
        block: float32 [queries, dim].
        rows: int64 [queries, candidates], rows of `vectors`; -1 = none.

    Returns:
        float32 [queries, candidates], -inf for row -1.
    """
    similarity = np.empty(rows.shape, dtype=np.float32)
    num_queries = max(PRODUCTS_AT_ONCE // (rows.shape[1] * block.shape[1]), 1)
    for start in range(0, len(block), num_queries):
        part = slice(start, start + num_queries)
        # [queries, candidates, dim] summed over dim
        similarity[part] = (vectors[rows[part]] * block[part, None, :]).sum(axis=2)
    similarity[rows < 0] = -np.inf
    return similarity


def products_on_device(vectors: Tensor, block: Tensor, rows: Tensor) -> Tensor:
    """As `own_products`, on the device of the tensors; no row is treated as missing."""
    similarity = torch.empty(rows.shape, device=block.device)
    num_queries = max(PRODUCTS_AT_ONCE // (rows.shape[1] * block.shape[1]), 1)
    for start in range(0, len(block), num_queries):
        part = slice(start, start + num_queries)
        # [queries, candidates, dim] summed over dim
        similarity[part] = (vectors[rows[part]] * block[part, None, :]).sum(dim=2)
    return similarity


def as_array(block: Queries) -> Float32:
    """The queries in host memory."""
    return block.cpu().numpy() if isinstance(block, Tensor) else block


def _equal_rows(vectors: Float32) -> Int64:
    """The rows of each distinct vector: int64 [distinct, most equal], ascending, -1 = none."""
    groups: dict[bytes, list[int]] = {}
    for row, vector in enumerate(vectors):
        groups.setdefault(blake2b(vector, digest_size=16).digest(), []).append(row)
    members = np.full((len(groups), max(map(len, groups.values()))), -1, np.int64)
    for group, rows in enumerate(groups.values()):
        members[group, : len(rows)] = rows
    return members
