"""What stands beside a closed tar: its count, size and hash, and where each sample ends.

```
{
 "path": "lane00000-000000.tar", "rows": 2, "bytes": 20480, "sha256": "…",
 "samples": "9216:1c291ca3 20480:9d05e2f1",
 "json_sha256": "…"
}
```
`samples` has the end of each sample in the tar and the CRC-32 of its bytes, headers and padding
included; the last one ends with the tar. So whoever reads one sample need not hash the whole tar.
"""

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cit_curate.errors import DamagedError
from cit_curate.run.paths import MANIFESTS
from cit_curate.storage.durable import FileEntry, file_entry, read_json, write_sealed


@dataclass(frozen=True, slots=True)
class SampleMark:
    """One sample of a tar: the end of its bytes, and their CRC-32; the next one starts there."""

    end: int
    crc32: int

    def extended(self, content: bytes) -> "SampleMark":
        """The mark of this sample with more bytes at its end."""
        return SampleMark(self.end + len(content), zlib.crc32(content, self.crc32))


@dataclass(frozen=True)
class ShardManifest:
    """The file beside a closed tar.

    Attributes:
        entry: The tar: its name, samples, size and SHA-256.
        samples: One mark per sample; None for a shard from before samples were marked.
    """

    entry: FileEntry
    samples: Sequence[SampleMark] | None


def write_shard_manifest(path: Path, manifest: ShardManifest) -> None:
    """Write the file beside a closed tar.

    Args:
        path: The path of the manifest.
        manifest: The tar and its samples.
    """
    marks = " ".join(f"{mark.end}:{mark.crc32:08x}" for mark in manifest.samples or ())
    write_sealed(path, {**asdict(manifest.entry), "samples": marks})


def read_shard_manifest(tar: Path) -> ShardManifest:
    """The manifest beside a closed tar, or for an export in its own folder.

    Raises:
        DamagedError: It is missing or damaged.
    """
    path = tar.with_suffix(".json")
    exported = tar.parent / MANIFESTS / path.name
    path = exported if exported.is_file() else path
    value = read_json(path)
    marks = value.pop("samples", None) if isinstance(value, dict) else None
    entry = file_entry(value, str(path))
    if marks is None:
        return ShardManifest(entry, None)
    try:
        fields = [mark.split(":") for mark in marks.split()]
        samples = [SampleMark(int(end), int(crc32, 16)) for end, crc32 in fields]
    except (AttributeError, ValueError) as error:
        raise DamagedError(f"{path} is damaged: {error}", file=str(path)) from error
    if len(samples) != entry.rows:
        raise DamagedError(
            f"{path} is damaged: it has {len(samples)} marks of samples for {entry.rows} samples",
            file=str(path),
        )
    return ShardManifest(entry, samples)
