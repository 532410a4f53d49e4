"""How much of the nearest metadata a faster index finds."""

import numpy as np

from indexes.protocol import SearchResult


def recall(found: SearchResult, exact: SearchResult) -> float:
    """Share of the exact answers' entries that were found, whatever their place among the k."""
    if found.ids.shape != exact.ids.shape:
        raise ValueError(f"found {found.ids.shape} where the exact answer is {exact.ids.shape}")
    # [queries, exact, found]
    same = exact.ids[:, :, None] == found.ids[:, None, :]
    return float(same.any(axis=2).mean()) if exact.ids.size else 1.0


def similarity_error(found: SearchResult, exact: SearchResult) -> float:
    """The most that a query's best similarity differs from the exact one."""
    difference = np.abs(found.similarity[:, :1] - exact.similarity[:, :1])
    return float(difference.max(initial=0.0))
