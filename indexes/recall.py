"""How well an approximate index agrees with the exact one."""

import numpy as np

from indexes.protocol import SearchResult


def recall(found: SearchResult, exact: SearchResult) -> float:
    """The share of the exact entries among the k that were found, in any order."""
    if found.ids.shape != exact.ids.shape:
        raise ValueError(f"found {found.ids.shape}, but the exact result is {exact.ids.shape}")
    # [queries, exact, found]
    same = exact.ids[:, :, None] == found.ids[:, None, :]
    return float(same.any(axis=2).mean()) if exact.ids.size else 1.0


def similarity_error(found: SearchResult, exact: SearchResult) -> float:
    """The largest difference between a query's best similarity and the exact one."""
    difference = np.abs(found.similarity[:, :1] - exact.similarity[:, :1])
    return float(difference.max(initial=0.0))
