"""WebDataset tars: written whole or not at all, and checked against their manifest when read.

One sample is `{name}.jpg|png|webp` (the bytes of the image), `{name}.txt` (the caption) and
`{name}.json` (pair key, similarity, metadata, reason). `name` is the pair key (in a run of several
pools `POOL/PAIR-KEY`). It is escaped, since webdataset cuts a name at its first dot. A long one is
its beginning and a hash, since a file system takes 255 bytes. Beside each closed tar is its
manifest (`shard_manifest`): a sample that is cut or changed at any byte is refused. Exports have
these in a folder of their own.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import tarfile
import weakref
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote

from cit_curate.errors import DamagedError
from cit_curate.run.paths import shard_name
from cit_curate.run.shard_manifest import (
    SampleMark,
    ShardManifest,
    read_shard_manifest,
    write_shard_manifest,
)
from cit_curate.run.tar_reader import TarMember, tar_members
from cit_curate.run.tar_writer import end_of_tar, member
from cit_curate.storage.durable import (
    FileEntry,
    atomic_file,
    check_file,
    write_json,
)

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

IMAGE_SUFFIXES = ("jpg", "png", "webp", "gif", "bmp")

# Leaves room, below the 255 bytes of a file name, for the suffix and the number of a repetition.
MAX_NAME_BYTES = 200
_HASH_DIGITS = 16


@dataclass(frozen=True)
class Sample:
    """One pair in a shard; `info` is its `.json` member, which holds `pair_key`."""

    image: bytes
    suffix: str
    caption: str
    info: Mapping[str, Any]

    @property
    def pair_key(self) -> str:
        """The pair key, unescaped."""
        return str(self.info["pair_key"])

    @property
    def name(self) -> str:
        """The unique name of the pair: its key, after its pool in a run of several pools."""
        pool = self.info.get("pool")
        return f"{pool}/{self.pair_key}" if pool else self.pair_key


def member_name(pair_key: str) -> str:
    """A pair key as the name of a tar member without suffix: no dot, no slash, no leading `__`.

    It is ASCII. Above `MAX_NAME_BYTES` its end is replaced by `=` and the start of the key's
    SHA-256; no other name has a `=`.
    """
    name = quote(pair_key, safe="").replace(".", "%2E").replace("~", "%7E")
    name = f"%5F{name[1:]}" if name.startswith("_") else name
    if len(name) <= MAX_NAME_BYTES:
        return name
    digits = hashlib.sha256(pair_key.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{name[: MAX_NAME_BYTES - 1 - _HASH_DIGITS]}={digits}"


class ShardWriter:
    """A writer of samples, in their order, into `{prefix}-000000.tar` and so on."""

    def __init__(
        self,
        folder: Path,
        prefix: str,
        *,
        pairs_per_shard: int,
        entries: Sequence[FileEntry] = (),
        make_room: Callable[[], bool] = lambda: False,
        manifests: Path | None = None,
    ) -> None:
        """Start a writer, or resume after the shards in `entries`.

        Args:
            folder: The folder of the shards.
            prefix: The prefix of their names.
            pairs_per_shard: The number of pairs in each shard but the last.
            entries: The entries of the shards that exist already.
            make_room: Called when the disk is full; returns whether to try again.
            manifests: The folder of the manifests; None = beside the shards.
        """
        self.folder = folder
        self.prefix = prefix
        self.pairs_per_shard = pairs_per_shard
        self.entries = list(entries)
        self._pending: list[Sample] = []
        self._make_room = make_room
        self._manifests = manifests or folder
        self._manifests.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def is_almost_full(self) -> bool:
        """Whether the next sample closes a shard."""
        return len(self._pending) == self.pairs_per_shard - 1

    def add(self, sample: Sample) -> None:
        """Add one sample; every `pairs_per_shard` of them become a closed shard."""
        self._pending.append(sample)
        if len(self._pending) >= self.pairs_per_shard:
            self._close_shard()

    def close(self) -> list[FileEntry]:
        """Close the last shard and write `{prefix}.json`, which marks the shards as complete.

        Returns:
            The entries of all shards, in order.
        """
        if self._pending:
            self._close_shard()
        whole = [asdict(entry) for entry in self.entries]
        write_json(self._manifests / f"{self.prefix}.json", whole)
        return self.entries

    def _close_shard(self) -> None:
        while True:
            try:
                return self._write_shard()
            except OSError as error:
                if error.errno not in _DISK_FULL or not self._make_room():
                    raise

    def _write_shard(self) -> None:
        path = self.folder / shard_name(self.prefix, len(self.entries))
        sha256 = hashlib.sha256()
        marks = [SampleMark(0, 0)]
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            for content in self._tar_samples():
                # Hashed now, since reading the file again takes as long as writing it.
                sha256.update(content)
                stream.write(content)
                marks.append(SampleMark(marks[-1].end, 0).extended(content))
            end = end_of_tar(marks[-1].end)
            sha256.update(end)
            stream.write(end)
            marks.append(marks.pop().extended(end))
        entry = FileEntry(path.name, len(self._pending), marks[-1].end, sha256.hexdigest())
        manifest = (self._manifests / path.name).with_suffix(".json")
        write_shard_manifest(manifest, ShardManifest(entry, marks[1:]))
        self.entries.append(entry)
        self._pending = []

    def _tar_samples(self) -> Iterator[bytes]:
        """The members of each sample, in the order of their suffixes, as webdataset orders them."""
        seen: Counter[str] = Counter()
        for sample in self._pending:
            name = member_name(sample.name)
            seen[name] += 1
            # The same pair twice in one shard would be read as one sample.
            unique = name if seen[name] == 1 else f"{name}+{seen[name]}"
            info = json.dumps(sample.info, ensure_ascii=False)
            contents = {
                sample.suffix: sample.image,
                "txt": sample.caption.encode(),
                "json": info.encode(),
            }
            yield b"".join(
                member(f"{unique}.{suffix}", contents[suffix]) for suffix in sorted(contents)
            )


class _ShardSamples(Sequence[Sample]):
    """The samples of a tar, each read at access.

    The file stays open as long as the object exists, so that it may be removed meanwhile.
    """

    @overload
    def __getitem__(self, row: int) -> Sample: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[Sample]: ...

    def __getitem__(self, row: int | slice) -> Sample | Sequence[Sample]:
        """A sample by its row, or several.

        Raises:
            DamagedError: A sample lacks a member, or has changed.
        """
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return self._sample(range(len(self))[row])

    @abstractmethod
    def _sample(self, row: int) -> Sample:
        """The sample of a row, counted from 0."""


class ClosedShard(_ShardSamples):
    """The samples of one shard, which is checked as a whole first."""

    def __init__(self, folder: Path, entry: FileEntry) -> None:
        """Open a shard and check the whole tar against its entry.

        Raises:
            DamagedError: The tar differs from its entry, or a sample is in pieces.
        """
        # Before the import: then webdataset refuses pipes and pickles, which nothing here uses.
        os.environ.setdefault("WDS_SECURE", "1")
        import webdataset as wds  # imports torch

        self._path = check_file(folder, entry)
        url = str(self._path)
        try:
            with self._path.open("rb") as stream:
                self._content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            members = tar_members(self._content)
            files = ({"fname": m.name, "data": m, "__url__": url} for m in members)
            self._samples = list(wds.tariterators.group_by_keys(files))
        except (tarfile.TarError, ValueError) as error:
            raise DamagedError(f"{self._path} is no shard: {error}") from error
        seen: set[str] = set()
        for key in (members["__key__"] for members in self._samples):
            if key in seen:
                raise DamagedError(f"sample {key!r} of {self._path} is in pieces, others between")
            seen.add(key)
        if len(self._samples) != entry.rows:
            raise DamagedError(
                f"{self._path} has {len(self._samples)} samples; its manifest says {entry.rows}"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def _sample(self, row: int) -> Sample:
        members = self._samples[row]
        fields = {
            name: self._content[member.start : member.end]
            for name, member in members.items()
            if isinstance(member, TarMember)
        }
        return _sample(self._path, members["__key__"], fields)


class MarkedShard(_ShardSamples):
    """The samples of one shard whose manifest marks them; each is checked when it is read.

    So the processes that share the samples of a shard do not all hash the whole tar.
    """

    def __init__(self, folder: Path, entry: FileEntry, marks: Sequence[SampleMark]) -> None:
        """Open a shard.

        Raises:
            DamagedError: The tar is missing, or has another size than its entry.
        """
        self._path = check_file(folder, entry, full=False)
        self._marks = marks
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._marks)

    def _sample(self, row: int) -> Sample:
        start, mark = self._marks[row - 1].end if row else 0, self._marks[row]
        content = os.pread(self._file, mark.end - start, start)
        if zlib.crc32(content) != mark.crc32:
            raise DamagedError(
                f"{self._path} has changed since it was written: the CRC-32 of its sample {row} "
                "differs",
                file=str(self._path),
            )
        members = tar_members(content, is_part=True)
        fields = {m.name.rpartition(".")[2]: content[m.start : m.end] for m in members}
        return _sample(self._path, members[0].name.rpartition(".")[0], fields)


def open_shard(tar: Path) -> Sequence[Sample]:
    """The samples of a closed tar; what is read of it is checked against its manifest.

    Raises:
        DamagedError: The tar or its manifest is missing or damaged.
    """
    manifest = read_shard_manifest(tar)
    if manifest.samples is None:
        return ClosedShard(tar.parent, manifest.entry)
    return MarkedShard(tar.parent, manifest.entry, manifest.samples)


def read_shard(folder: Path, entry: FileEntry) -> Iterator[Sample]:
    """The samples of one shard, in order.

    Raises:
        DamagedError: The tar differs from its entry, or a sample lacks a member.
    """
    yield from ClosedShard(folder, entry)


def closed_shards(folder: Path, prefix: str) -> list[FileEntry]:
    """The entries of the leading whole shards, from `{prefix}-000000.tar` on.

    The first shard that is damaged or was never closed is removed, and all after it.
    """
    entries: list[FileEntry] = []
    (folder / f"{prefix}.json").unlink(missing_ok=True)  # the mark of completeness
    with contextlib.suppress(DamagedError):
        while (path := folder / shard_name(prefix, len(entries))).exists():
            entry = shard_entry(path)
            check_file(folder, entry)
            entries.append(entry)
    remove_shards(folder, prefix, first=len(entries))
    return entries


def remove_shards(folder: Path, prefix: str, *, first: int = 0) -> None:
    """Remove the shards of a lane from number `first` on."""
    for path in folder.glob(f"{prefix}-*"):
        if int(path.stem.removeprefix(f"{prefix}-")) >= first:
            path.unlink()


def shard_entry(path: Path) -> FileEntry:
    """The entry of a closed tar in its manifest.

    Raises:
        DamagedError: The manifest is missing or damaged.
    """
    return read_shard_manifest(path).entry


def _sample(path: Path, key: str, fields: Mapping[str, bytes]) -> Sample:
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in fields), None)
    missing = [name for name in ("txt", "json") if name not in fields]
    if suffix is None or missing:
        lacking = " and ".join([*missing, *([] if suffix else ["image"])])
        raise DamagedError(f"sample {key!r} of {path} has no {lacking} member")
    info = json.loads(fields["json"])
    return Sample(fields[suffix], suffix, fields["txt"].decode(), info)
