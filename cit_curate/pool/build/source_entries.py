"""The state of sources when a pool was built, and the differences from another build."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cit_curate.errors import DamagedError
from cit_curate.pool.format import PoolManifest, SourceEntry
from cit_curate.sources.folders.walk import walk
from cit_curate.sources.source import Source
from cit_curate.storage.remote import remote_url

HEAD_BYTES = 1 << 20

# The words for a setting of a source that was different.
_READ_OTHERWISE = {
    "name": "was called",
    "format": "was read as",
    "image_root": "had its images in",
}


@dataclass(frozen=True)
class Asked:
    """The request for a build; equal requests make the same pool.

    Attributes:
        name: The pool's name.
        sources: The current state of the sources, in order.
        settings: The value of `settings_of`.
    """

    name: str
    sources: tuple[SourceEntry, ...]
    settings: Mapping[str, object]


def source_entry(source: Source) -> SourceEntry:
    """The current state of a source."""
    if source.path.is_dir():
        root = source.path if source.root_url else source.image_root
        num_bytes, digest = _tree(source.path, root)
        mtime_ns = 0
    else:
        state = source.path.stat()
        with source.path.open("rb") as file:
            digest = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
        # The time of a local copy is when the copy was made or used, so it is left out.
        num_bytes, mtime_ns = state.st_size, 0 if source.url else state.st_mtime_ns
    return SourceEntry(
        name=source.name,
        path=source.url or str(source.path),
        format=source.format,
        image_root=source.root_url or str(source.image_root),
        bytes=num_bytes,
        mtime_ns=mtime_ns,
        head_sha256=digest,
    )


def _tree(folder: Path, root: Path) -> tuple[int, str]:
    """Bytes of the files below a folder, and a hash of their names, sizes and times.

    Hidden files do not count: no reader opens them, and a build may have its staging there.
    """
    digest, num_bytes = hashlib.sha256(), 0
    for listing in walk(folder, root):
        for name in listing.names:
            try:
                state = (listing.path / name).stat()
            except FileNotFoundError:
                continue  # A dangling link, or a file that was just removed.
            relative = os.fsencode(listing.prefix + name)
            digest.update(repr((relative, state.st_size, state.st_mtime_ns)).encode())
            num_bytes += state.st_size
    return num_bytes, digest.hexdigest()


def check_unchanged(source: Source, entry: SourceEntry) -> None:
    """Raise unless a source is still in the state of `entry`.

    Raises:
        DamagedError: The source has changed.
    """
    if source_entry(source) != entry:
        raise DamagedError(f"{source.path} changed while it was read; build again")


def changed_sources(manifest: PoolManifest) -> list[str]:
    """A sentence for each source of a pool that is missing or has changed since the build."""
    changes = []
    for entry in manifest.sources:
        if remote_url(entry.path) is not None:
            continue  # Checking it would need its store.
        path = Path(entry.path)
        if not path.exists():
            changes.append(f"the source {path} is gone")
            continue
        source = Source(entry.name, path, entry.format, Path(entry.image_root))  # type: ignore[arg-type]
        changes += _changes(entry, source_entry(source))
    return changes


def settings_of(
    cleaning: str, columns: Mapping[str, object], id_lists: Mapping[str, object]
) -> dict[str, object]:
    """The settings that a pool's pairs depend on, by command line option: JSON values.

    The arguments are those of `PoolManifest`.
    """
    lists = {
        name: value["sha256"] if isinstance(value, Mapping) else value
        for name, value in id_lists.items()
        if isinstance(value, Mapping) or name == "reference_empty_tags"
    }
    return {
        f"--{name.replace('_', '-')}": list(value) if isinstance(value, tuple) else value
        for name, value in {"clean": cleaning, **columns, **lists}.items()
    }


def differences(manifest: PoolManifest, request: Asked) -> list[str]:
    """A sentence for each difference between a pool and the request for a build."""
    changes = []
    if manifest.subset is not None:
        changes.append(f"it was cut out of the pool {manifest.subset.pool_name}")
    now = {entry.path: entry for entry in request.sources}
    before = {entry.path: entry for entry in manifest.sources}
    for path, entry in before.items():
        changes += _changes(entry, now[path]) if path in now else [f"{path} is no source any more"]
    changes += [f"the source {path} is new" for path in now if path not in before]
    paths = [entry.path for entry in request.sources]
    if not changes and [entry.path for entry in manifest.sources] != paths:
        changes.append("its sources were in another order, or listed a different number of times")
    settings = {
        "--name": manifest.name,
        **settings_of(manifest.cleaning, manifest.columns, manifest.id_lists),
    }
    requested = {"--name": request.name, **request.settings}
    return changes + [
        f"{option} was {_shown(settings.get(option))}, now {_shown(requested.get(option))}"
        for option in {**settings, **requested}
        if settings.get(option) != requested.get(option)
    ]


def _changes(entry: SourceEntry, now: SourceEntry) -> list[str]:
    """The differences between a pool's source and the source at its path now."""
    changes = [
        f"the source {entry.path} {words} {getattr(entry, name)}, now {getattr(now, name)}"
        for name, words in _READ_OTHERWISE.items()
        if getattr(entry, name) != getattr(now, name)
    ]
    if not entry.head_sha256:
        return changes  # A folder, in a pool of a version that did not hash the files below.
    if (now.bytes, now.head_sha256) != (entry.bytes, entry.head_sha256):
        sizes = f"{entry.bytes:,} bytes, now {now.bytes:,}"
        changes.append(f"the source {entry.path} has changed ({sizes})")
    elif now.mtime_ns != entry.mtime_ns:
        changes.append(f"the source {entry.path} was written again")
    return changes


def _shown(value: object) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return "none" if value in (None, "") else str(value)
