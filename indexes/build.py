"""An index of the requested kind: exact in torch, or one of FAISS's."""

import torch

from indexes.exact import ExactIndex
from indexes.protocol import Float32, MetadataIndex

KINDS = ("auto", "exact", "flat", "ivf", "hnsw")


def build_index(
    vectors: Float32, kind: str = "auto", *, device: str | torch.device = "cpu"
) -> MetadataIndex:
    """Build an index of the requested kind.

    Args:
        vectors: float32 [entries, dim], unit norm.
        kind: `exact` (torch); `flat`, `ivf` or `hnsw` (FAISS); `auto` = `flat` where FAISS is
            installed, else `exact`. Those two return identical bits, and which is faster depends
            on the processor (docs/performance.md, "Index"). `ivf` and `hnsw` may miss the nearest
            entry, so `auto` never picks them. For queries on a GPU that FAISS does not see, `auto`
            is `exact`: they stay there.
        device: The device of the queries. `exact` searches there, and so does FAISS if it sees
            that GPU.

    Raises:
        ValueError: The kind is unknown, or needs FAISS, which is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"index kind {kind!r} is unknown; there are {', '.join(KINDS)}")
    if kind == "exact":
        return ExactIndex(vectors, device=device)
    try:
        from indexes.faiss_index import FaissIndex, sees_gpu
    except ImportError:
        if kind != "auto":
            raise ValueError(
                f"index kind {kind!r} needs FAISS: pip install 'cit[cpu]' or 'cit[gpu]'"
            ) from None
        return ExactIndex(vectors, device=device)
    if kind == "auto" and torch.device(device).type == "cuda" and not sees_gpu():
        return ExactIndex(vectors, device=device)
    return FaissIndex(vectors, "flat" if kind == "auto" else kind, device=device)
