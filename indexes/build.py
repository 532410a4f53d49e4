"""An index of the asked kind: exact in torch, or one of FAISS."""

import torch

from indexes.exact import ExactIndex
from indexes.protocol import Float32, MetadataIndex

KINDS = ("auto", "exact", "flat", "ivf", "hnsw")


def build_index(
    vectors: Float32, kind: str = "auto", *, device: str | torch.device = "cpu"
) -> MetadataIndex:
    """An index of the asked kind.

    Args:
        vectors: float32 [entries, dim], unit norm.
        device: Where queries are made. `exact` is there, and FAISS, where it sees that GPU.
        kind: `exact` (torch); `flat`, `ivf` or `hnsw` (FAISS); `auto` = `flat` where FAISS is
            installed, else `exact`. The two find the same to the last bit, and which is faster
            depends on the processor (docs/performance.md, "Index"). `ivf` and `hnsw` may miss the
            nearest entry, so they are never chosen unasked.

    Raises:
        ValueError: An unknown kind, or one of FAISS without FAISS.
    """
    if kind not in KINDS:
        raise ValueError(f"index kind {kind!r} is unknown; there are {', '.join(KINDS)}")
    if kind == "exact":
        return ExactIndex(vectors, device=device)
    try:
        from indexes.faiss_index import FaissIndex
    except ImportError:
        if kind != "auto":
            raise ValueError(
                f"index kind {kind!r} needs FAISS: pip install 'cit[cpu]' or 'cit[gpu]'"
            ) from None
        return ExactIndex(vectors, device=device)
    return FaissIndex(vectors, "flat" if kind == "auto" else kind, device=device)
