"""WebDataset tars: written whole or not at all, and checked against their manifest when read.

One sample is `{name}.jpg|png|webp` (the bytes of the image), `{name}.txt` (the caption) and
`{name}.json` (pair key, similarity, metadata, reason). `name` is the pair key (in a run of several
pools `POOL/PAIR-KEY`). It is escaped, since webdataset cuts a name at its first dot. A long one is
its beginning and a hash, since a file system takes 255 bytes. Beside each closed tar is
`{tar name}.json` with its count, size and SHA-256: a tar that is cut at any byte is refused, never
read in part. Exports have these in a folder of their own.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote

from cit_curate.errors import DamagedError
from cit_curate.run.paths import MANIFESTS, shard_name
from cit_curate.run.tar_reader import TarMember, tar_members
from cit_curate.run.tar_writer import end_of_tar, member
from cit_curate.storage.durable import (
    FileEntry,
    atomic_file,
    check_file,
    file_entry,
    read_json,
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
        size = 0
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            for part in self._tar_parts():
                # Hashed now, since reading the file again takes as long as writing it.
                sha256.update(part)
                size += stream.write(part)
            end = end_of_tar(size)
            sha256.update(end)
            size += stream.write(end)
        entry = FileEntry(path.name, len(self._pending), size, sha256.hexdigest())
        write_json((self._manifests / path.name).with_suffix(".json"), asdict(entry))
        self.entries.append(entry)
        self._pending = []

    def _tar_parts(self) -> Iterator[bytes]:
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
            for suffix in sorted(contents):
                yield member(f"{unique}.{suffix}", contents[suffix])


class ClosedShard(Sequence[Sample]):
    """The samples of one shard, each read at access.

    The file stays open as long as the object exists, so that it may be removed meanwhile.
    """

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

    @overload
    def __getitem__(self, row: int) -> Sample: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[Sample]: ...

    def __getitem__(self, row: int | slice) -> Sample | Sequence[Sample]:
        """A sample by its row, or several.

        Raises:
            DamagedError: A sample lacks a member.
        """
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        members = self._samples[row]
        fields = {
            name: self._content[member.start : member.end]
            for name, member in members.items()
            if isinstance(member, TarMember)
        }
        return _sample(self._path, members["__key__"], fields)


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
    """The entry in the JSON file beside a closed tar, or for an export in its own folder.

    Raises:
        DamagedError: It is missing or damaged.
    """
    manifest = path.with_suffix(".json")
    exported = path.parent / MANIFESTS / manifest.name
    manifest = exported if exported.is_file() else manifest
    return file_entry(read_json(manifest), str(manifest))


def _sample(path: Path, key: str, fields: Mapping[str, bytes]) -> Sample:
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in fields), None)
    missing = [name for name in ("txt", "json") if name not in fields]
    if suffix is None or missing:
        lacking = " and ".join([*missing, *([] if suffix else ["image"])])
        raise DamagedError(f"sample {key!r} of {path} has no {lacking} member")
    info = json.loads(fields["json"])
    return Sample(fields[suffix], suffix, fields["txt"].decode(), info)
