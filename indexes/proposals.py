"""From proposed entries to the nearest ones: what every backend shares.

A backend multiplies matrices, and some kernels (OpenBLAS for Haswell) round a row by its place in
the matrix: the last bits of what it finds depend on the queries beside it. So it only proposes a
few entries, and their products are computed one by one here: backends that propose the same entries
give the same bits.
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

# Candidates beyond the asked ones: near ties are decided by products of their own.
SPARE_CANDIDATES = 4
# 64 MB of float32.
PRODUCTS_AT_ONCE = 1 << 24


class ProposedIndex(ABC):
    """Nearest entries among those that a backend proposes.

    Equal vectors are indexed once; what is found stands for all of them, the lowest id first.
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
        similarity, places = self._candidates(block, min(k + SPARE_CANDIDATES, num_distinct))
        # [queries, candidates] -> [queries, candidates x equal ones]; no more than k are asked for.
        members = self._members[:, :k]
        ids = members[places].reshape(len(block), -1)
        similarity = np.repeat(similarity, members.shape[1], axis=1)
        similarity[ids < 0] = -np.inf
        # Of equal ones the lower id comes first.
        order = np.lexsort((ids, -similarity), axis=1)[:, :k]
        return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1)

    @abstractmethod
    def _candidates(self, block: Queries, count: int) -> tuple[Float32, Int64]:
        """Similarities and places in `_distinct` of each query's candidates; never -1."""


def own_products(vectors: Float32, block: Float32, places: Int64) -> Float32:
    """float32 [queries, candidates]: the products, each computed on its own; -inf for place -1."""
    similarity = np.empty(places.shape, dtype=np.float32)
    rows = max(PRODUCTS_AT_ONCE // (places.shape[1] * block.shape[1]), 1)
    for start in range(0, len(block), rows):
        part = slice(start, start + rows)
        # [queries, candidates, dim] summed over dim
        similarity[part] = (vectors[places[part]] * block[part, None, :]).sum(axis=2)
    similarity[places < 0] = -np.inf
    return similarity


def products_on_device(vectors: Tensor, block: Tensor, places: Tensor) -> Tensor:
    """As `own_products`, on the device where the tensors are; every place is one."""
    similarity = torch.empty(places.shape, device=block.device)
    rows = max(PRODUCTS_AT_ONCE // (places.shape[1] * block.shape[1]), 1)
    for start in range(0, len(block), rows):
        part = slice(start, start + rows)
        # [queries, candidates, dim] summed over dim
        similarity[part] = (vectors[places[part]] * block[part, None, :]).sum(dim=2)
    return similarity


def as_array(block: Queries) -> Float32:
    """The queries in the host's memory."""
    return block.cpu().numpy() if isinstance(block, Tensor) else block


def _equal_rows(vectors: Float32) -> Int64:
    """int64 [distinct, most equal]: the rows of each distinct vector, ascending, then -1."""
    groups: dict[bytes, list[int]] = {}
    for row, vector in enumerate(vectors):
        groups.setdefault(blake2b(vector, digest_size=16).digest(), []).append(row)
    members = np.full((len(groups), max(map(len, groups.values()))), -1, np.int64)
    for place, rows in enumerate(groups.values()):
        members[place, : len(rows)] = rows
    return members
