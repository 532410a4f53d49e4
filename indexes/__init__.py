"""Nearest-neighbour search over metadata vectors: vectors in, ids and similarities out."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexes.build import build_index
    from indexes.exact import ExactIndex
    from indexes.faiss_index import FaissIndex
    from indexes.protocol import MetadataIndex, SearchResult

__all__ = ["ExactIndex", "FaissIndex", "MetadataIndex", "SearchResult", "build_index"]

# Imported on first use: torch and FAISS take seconds to load.
_MODULES = {
    "ExactIndex": "indexes.exact",
    "FaissIndex": "indexes.faiss_index",
    "MetadataIndex": "indexes.protocol",
    "SearchResult": "indexes.protocol",
    "build_index": "indexes.build",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
