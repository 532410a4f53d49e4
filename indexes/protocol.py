"""What every index over the metadata can do."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Queries = Float32 | Tensor
"""float32 [queries, dim]; a tensor is searched on its device, if the index is there too."""

# Rows of every matrix product. With a fixed number of rows, a query's similarities do not depend
# on how many queries come with it; the last block is padded with zeros.
BLOCK_ROWS = 1024


@dataclass(frozen=True)
class SearchResult:
    """The nearest entries of each query, best first; ties go to the lower id.

    Attributes:
        similarity: float32 [queries, k], cosine.
        ids: int64 [queries, k], row numbers of the indexed vectors; never -1.
    """

    similarity: Float32
    ids: Int64


class MetadataIndex(Protocol):
    """Unit vectors of the metadata entries, searched by cosine."""

    @property
    def kind(self) -> str:
        """The backend's name, as in --index."""

    @property
    def vectors(self) -> Float32:
        """The indexed vectors: float32 [entries, dim]."""

    def search(self, queries: Queries, k: int = 1) -> SearchResult:
        """The `k` nearest entries of each query.

        Args:
            queries: float32 [queries, dim], unit norm, finite; see `Queries`.
            k: At most the number of entries.

        Raises:
            ValueError: A wrong dimension, a NaN or infinity, or k out of range.
        """


def check_vectors(vectors: Float32) -> Float32:
    """The vectors as contiguous float32 [entries, dim].

    Raises:
        ValueError: There are none, they are not two-dimensional, or one is not finite.
    """
    if vectors.ndim != 2 or not len(vectors):
        raise ValueError(f"an index needs vectors [entries, dim]; these have shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise ValueError(f"vector {row} has a NaN or an infinity")
    return np.ascontiguousarray(vectors, dtype=np.float32)


def check_queries(queries: Queries, *, num_entries: int, dim: int, k: int) -> Queries:
    """The queries as contiguous float32 [queries, dim], checked against the index.

    Raises:
        ValueError: A wrong dimension, a NaN or infinity, or k out of range.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(
            f"queries have shape {tuple(queries.shape)} and the metadata {dim} dimensions; "
            "embed both with the same text tower"
        )
    if not 1 <= k <= num_entries:
        raise ValueError(f"k is {k}; the index has {num_entries} entries")
    tensor = torch.as_tensor(queries, dtype=torch.float32)
    if not tensor.isfinite().all():
        row = int((~tensor.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"query {row} has a NaN or an infinity")
    if isinstance(queries, Tensor):
        return tensor.contiguous()
    return np.ascontiguousarray(queries, dtype=np.float32)


def blocks(queries: Float32) -> list[Float32]:
    """The queries in blocks of exactly `BLOCK_ROWS` rows, the last padded with zeros."""
    num_blocks = -(-len(queries) // BLOCK_ROWS)
    padded = np.zeros((num_blocks * BLOCK_ROWS, queries.shape[1]), dtype=np.float32)
    padded[: len(queries)] = queries
    return np.split(padded, num_blocks) if num_blocks else []


def tensor_blocks(queries: Tensor) -> list[Tensor]:
    """As `blocks`, on the device of the queries."""
    filled = torch.nn.functional.pad(queries, (0, 0, 0, -len(queries) % BLOCK_ROWS))
    return list(torch.split(filled, BLOCK_ROWS)) if len(queries) else []
