"""The index of a run on disk, rebuilt only when something that it depends on has changed.

It is stored as its vectors in one `.npy`, and a manifest that is written last.

```
INDEX/
  vectors-<version>.npy   float32 [entries, dim]
  manifest.json           kind, version, dim, and the file's rows, bytes and SHA-256
```
Only the vectors are stored, for every backend: a Flat index is its vectors, and an IVF or HNSW
index is rebuilt from the same vectors in the same way every time.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import (
    atomic_file,
    check_file,
    describe_file,
    file_entry,
    read_json,
    write_sealed,
)
from indexes.build import build_index
from indexes.protocol import Float32, MetadataIndex

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_MEMBERS = {"format_version", "kind", "version", "dim", "file"}


def save_index(index: MetadataIndex, folder: Path, *, version: str) -> None:
    """Store an index; the previous one stays whole until the new manifest is written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"vectors-{version[:16]}.npy"
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, index.vectors, allow_pickle=False)
    entry = describe_file(path, folder, rows=len(index.vectors))
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": index.kind,
        "version": version,
        "dim": index.vectors.shape[1],
        "file": asdict(entry),
    }
    write_sealed(folder / "manifest.json", manifest)
    for older in folder.glob("vectors-*.npy"):
        if older != path:
            older.unlink()


def load_vectors(folder: Path) -> tuple[str, Float32]:
    """The version and the vectors of a stored index.

    Returns:
        The version, and float32 [entries, dim].

    Raises:
        DamagedError: The manifest or the vectors are missing, cut or changed.
    """
    manifest = read_json(folder / "manifest.json")
    try:
        if manifest.keys() != _MEMBERS:  # else a damaged name of the seal would hide the seal
            raise ValueError(f"it has {', '.join(sorted(manifest))}")
        entry = file_entry(manifest["file"], str(folder / "manifest.json"))
        version, dim = str(manifest["version"]), int(manifest["dim"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder / 'manifest.json'} is damaged: {error}") from error
    path = check_file(folder, entry)
    vectors = np.load(path, allow_pickle=False)
    if vectors.shape != (entry.rows, dim) or vectors.dtype != np.float32:
        raise DamagedError(
            f"{path} holds {vectors.dtype} {vectors.shape}; its manifest says float32 "
            f"({entry.rows}, {dim})"
        )
    return version, vectors


class VersionedIndex:
    """The index of one run; its version is the fingerprint of everything its vectors depend on.

    Attributes:
        num_builds: How often the vectors were embedded again.
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
        """The index at `version`: the one in memory, the stored one, or a new one.

        A damaged stored index is ignored with a warning and rebuilt.

        Args:
            version: The fingerprint of encoder, entries and prompts.
            embed: Computes the vectors, float32 [entries, dim]; called only for a new index.
            device: See `build_index`.
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
            logger.warning("the stored index is damaged and will be rebuilt: %s", error)
            return None
        return vectors if stored_version == version else None
