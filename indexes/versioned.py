"""One index, rebuilt when what it depends on has changed and reused when it has not."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from indexes.errors import DamagedError
from indexes.exact import ExactIndex
from indexes.protocol import Float32, MetadataIndex
from indexes.storage import load_vectors, save_index

logger = logging.getLogger(__name__)


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


class VersionedIndex:
    """The index of one run; its version is the fingerprint of all that its vectors depend on.

    Attributes:
        num_builds: How often the vectors were embedded and indexed anew.
    """

    def __init__(self, kind: str = "auto", folder: Path | None = None) -> None:
        self.kind = kind
        self.folder = folder
        self.num_builds = 0
        self._version: str | None = None
        self._index: MetadataIndex | None = None

    def refresh(
        self, version: str, embed: Callable[[], Float32], *, device: str | torch.device = "cpu"
    ) -> MetadataIndex:
        """The index at `version`: the one at hand, the stored one, or a new one.

        Args:
            version: Fingerprint of encoder, entries and prompts.
            embed: Gives the vectors, float32 [entries, dim]; called only for a new index.
            device: See `build_index`.

        A damaged stored index is refused with a warning, and built anew.
        """
        if self._index is not None and self._version == version:
            return self._index
        vectors = self._stored(version)
        is_new = vectors is None
        index = build_index(embed() if vectors is None else vectors, self.kind, device=device)
        if is_new:
            self.num_builds += 1
            if self.folder is not None:
                save_index(index, self.folder, version=version)
        self._version, self._index = version, index
        return index

    def _stored(self, version: str) -> Float32 | None:
        if self.folder is None or not (self.folder / "manifest.json").is_file():
            return None
        try:
            stored_version, vectors = load_vectors(self.folder)
        except DamagedError as error:
            logger.warning("the stored index is refused and built anew: %s", error)
            return None
        return vectors if stored_version == version else None
