"""An index on disk: its vectors in one `.npy`, and a manifest that is written last.

```
INDEX/
  vectors-<version>.npy   float32 [entries, dim]
  manifest.json           kind, version, dim, and the file's rows, bytes and SHA-256
```
The vectors are what is stored, whatever the backend: a Flat index is its vectors, and an IVF or
HNSW index is made of the same vectors in the same way every time.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from indexes.durable import (
    atomic_file,
    check_file,
    describe_file,
    file_entry,
    read_json,
    write_sealed,
)
from indexes.errors import DamagedError
from indexes.protocol import Float32, MetadataIndex

FORMAT_VERSION = 1
_MEMBERS = {"format_version", "kind", "version", "dim", "file"}


def save_index(index: MetadataIndex, folder: Path, *, version: str) -> None:
    """Store an index; the one stored before stays whole until the new manifest is in place."""
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
        if manifest.keys() != _MEMBERS:  # a seal whose name has changed is no seal
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
