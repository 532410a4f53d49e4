"""Sources as they were when a pool was built, and what tells one build from another."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cit_curate.errors import DamagedError
from cit_curate.pool.format import PoolManifest, SourceEntry
from cit_curate.sources.source import Source
from cit_curate.storage.remote import remote_url

HEAD_BYTES = 1 << 20

# How a person says that a source is read in another way.
_READ_OTHERWISE = {
    "name": "was called",
    "format": "was read as",
    "image_root": "had its images in",
}


@dataclass(frozen=True)
class Asked:
    """What a build is asked for: two that agree in it make the same pool.

    Attributes:
        name: The pool's name.
        sources: The sources as they are now, in order.
        settings: As `settings_of` gives them.
    """

    name: str
    sources: tuple[SourceEntry, ...]
    settings: Mapping[str, object]


def source_entry(source: Source) -> SourceEntry:
    """A source as it is now."""
    if source.path.is_dir():
        num_bytes, digest = _tree(source.path)
        mtime_ns = 0
    else:
        state = source.path.stat()
        with source.path.open("rb") as stream:
            digest = hashlib.sha256(stream.read(HEAD_BYTES)).hexdigest()
        # Of a local copy the time would be when that was made or used.
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


def _tree(folder: Path) -> tuple[int, str]:
    """Bytes of the files below a folder, and a hash of their names, sizes and times.

    Hidden ones do not count: no reader looks at them, and a build may have its staging there.
    """
    digest, num_bytes = hashlib.sha256(), 0
    for parent, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(parent, name)
            try:
                state = path.stat()
            except FileNotFoundError:
                continue  # A link that leads nowhere, or a file that has just gone.
            place = os.fsencode(path.relative_to(folder))
            digest.update(repr((place, state.st_size, state.st_mtime_ns)).encode())
            num_bytes += state.st_size
    return num_bytes, digest.hexdigest()


def check_unchanged(source: Source, entry: SourceEntry) -> None:
    """Raise unless a source is still as it was when `entry` was made.

    Raises:
        DamagedError: It changed.
    """
    if source_entry(source) != entry:
        raise DamagedError(f"{source.path} changed while it was read; build again")


def changed_sources(manifest: PoolManifest) -> list[str]:
    """What became of a pool's sources since it was built: a sentence per missing or changed one."""
    changes = []
    for entry in manifest.sources:
        if remote_url(entry.path) is not None:
            continue  # Its store is not asked without need.
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
    """What a pool's pairs depend on beside its sources, by the option that says it: JSON values.

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


def differences(manifest: PoolManifest, asked: Asked) -> list[str]:
    """Why a pool is not what a build is asked for: a sentence per difference; none if it is."""
    told = []
    if manifest.subset is not None:
        told.append(f"it was cut out of the pool {manifest.subset.pool_name}")
    now = {entry.path: entry for entry in asked.sources}
    before = {entry.path: entry for entry in manifest.sources}
    for path, entry in before.items():
        told += _changes(entry, now[path]) if path in now else [f"{path} is no source any more"]
    told += [f"the source {path} is new" for path in now if path not in before]
    if not told and [entry.path for entry in manifest.sources] != [e.path for e in asked.sources]:
        told.append("its sources were in another order, or not as often there")
    settings = {
        "--name": manifest.name,
        **settings_of(manifest.cleaning, manifest.columns, manifest.id_lists),
    }
    wanted = {"--name": asked.name, **asked.settings}
    return told + [
        f"{option} was {_shown(settings.get(option))}, now {_shown(wanted.get(option))}"
        for option in {**settings, **wanted}
        if settings.get(option) != wanted.get(option)
    ]


def _changes(entry: SourceEntry, now: SourceEntry) -> list[str]:
    """How a source of a pool differs from the one that is at its path now."""
    changes = [
        f"the source {entry.path} {words} {getattr(entry, name)}, now {getattr(now, name)}"
        for name, words in _READ_OTHERWISE.items()
        if getattr(entry, name) != getattr(now, name)
    ]
    if not entry.head_sha256:
        return changes  # A folder, in a pool of a version that did not look below.
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
