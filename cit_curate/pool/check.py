"""Checking every byte of a pool, and repairing what can be rebuilt from the rest."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.pool.build.source_entries import changed_sources
from cit_curate.pool.catalog import catalog_problem, rebuild_catalog
from cit_curate.pool.format import CATALOG_NAME, Part, PoolManifest, read_manifest
from cit_curate.pool.parts import image_starts
from cit_curate.pool.remote_pool import RemotePool
from cit_curate.pool.token_files import CURE as TOKENS_CURE
from cit_curate.pool.token_files import MANIFEST_NAME as TOKENS_MANIFEST
from cit_curate.pool.token_files import TokenFiles, token_folders
from cit_curate.storage.durable import FileEntry, check_file, leftovers, sweep_temporary
from cit_curate.storage.findings import Findings
from cit_curate.storage.remote import remote_url

_BUILD_AGAIN = "build it again from its sources (cit pool build … --overwrite)"


def check_pool(folder: Path) -> Findings:
    """Check a pool byte for byte: hashes, footers, counts, row groups, images.

    Returns:
        All damage; as notes, sources that have changed, a missing or outdated catalog, and files
        left by killed writers.

    Raises:
        ConfigError: There is no pool.
        ResourceError: The store cannot be reached.
    """
    url = remote_url(folder)
    where = url or str(folder)
    findings = Findings()
    try:
        remote = None if url is None else RemotePool(url)
        manifest = read_manifest(folder) if remote is None else remote.manifest
    except DamagedError as error:
        # Only the manifest describes the other files.
        findings.add(where, f"cannot be checked: {error}", _BUILD_AGAIN)
        return findings

    def checked_path(entry: FileEntry) -> Path:
        if remote is None:
            return check_file(folder, entry)
        return remote.copy(entry, recheck=True)

    for part in manifest.parts:
        with findings.catching(f"{where}/{part.file.path}", _BUILD_AGAIN):
            _check_part(checked_path(part.file), part)
    for entry in manifest.reject_parts:
        with findings.catching(f"{where}/{entry.path}", _BUILD_AGAIN):
            if pq.read_metadata(checked_path(entry)).num_rows != entry.rows:
                raise DamagedError(f"does not have the {entry.rows:,} rows of its manifest")
    pairs = sum(part.file.rows for part in manifest.parts)
    images = sum(images for part in manifest.parts for _, images in part.row_groups)
    for tokens in token_folders(folder) if remote is None else ():
        with findings.catching(f"{tokens}/{TOKENS_MANIFEST}", TOKENS_CURE):
            files = TokenFiles.read(tokens)
            if files.pool_fingerprint == manifest.fingerprint:
                files.check(manifest.parts, full=True)
            else:
                note = f"{tokens} belongs to another state of the pool and is not used"
                findings.notes.append(note)
    counts = (("pairs", manifest.num_pairs, pairs), ("images", manifest.num_images, images))
    for what, counted, actual in counts:
        if counted != actual:
            message = f"counts {counted:,} {what}, its parts have {actual:,}"
            findings.add(f"{where}/pool.json", message, _BUILD_AGAIN)
    if remote is not None:
        stored = {name for name in remote.listed if name.startswith(("pairs/", "rejects/"))}
        for name in sorted(stored - _listed(manifest)):
            findings.add(f"{where}/{name}", "belongs to no manifest", "remove it")
    else:
        for path in _unlisted(folder, manifest):
            findings.add(path, "belongs to no manifest", f"put it aside with: cit repair {folder}")
        problem = catalog_problem(folder, manifest)
        if problem is not None:
            findings.notes.append(f"{problem}; mend it with: cit pool repair {folder}")
        findings.notes += [
            f"{path} was left by a writer that was killed; remove it with: cit pool repair {folder}"
            for path in leftovers(folder)
        ]
        findings.notes += changed_sources(manifest)
    return findings


def repair_pool(folder: Path, *, dry_run: bool = False) -> list[str]:
    """Repair what can be rebuilt from the rest of a pool; the caller is its only writer.

    Returns:
        The repairs that were made, or with `dry_run` would be: leftovers removed, files that belong
        to no manifest put aside in POOL/damaged, the catalog written again.

    Raises:
        ConfigError: There is no pool, or it is in a store.
        DamagedError: Its manifest is damaged.
    """
    if (url := remote_url(folder)) is not None:
        raise ConfigError(f"{url} is in a store, where nothing is mended; build it again")
    manifest = read_manifest(folder)
    done = []
    for path in leftovers(folder):
        done.append(f"removed {path}, left by a writer that was killed")
    if not dry_run:
        sweep_temporary(folder)
    for path in _unlisted(folder, manifest):
        done.append(f"put aside in {folder / 'damaged'}: {path.relative_to(folder)}")
        if not dry_run:
            target = folder / "damaged" / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    try:
        for entry in _entries(manifest):
            check_file(folder, entry, full=False)
    except DamagedError:
        return done  # The catalog is made from these files.
    if catalog_problem(folder, manifest) is not None:
        done.append(f"wrote {folder / CATALOG_NAME} again")
        if not dry_run:
            rebuild_catalog(folder, manifest)
    return done


def verify_pool(folder: Path) -> list[str]:
    """The notes of `check_pool`.

    Raises:
        DamagedError: The message names every damaged file.
    """
    findings = check_pool(folder)
    findings.raise_damage(remote_url(folder) or str(folder))
    return findings.notes


def _entries(manifest: PoolManifest) -> list[FileEntry]:
    return [*(part.file for part in manifest.parts), *manifest.reject_parts]


def _listed(manifest: PoolManifest) -> set[str]:
    return {entry.path for entry in _entries(manifest)}


def _unlisted(folder: Path, manifest: PoolManifest) -> list[Path]:
    files = [*folder.glob("pairs/*.parquet"), *folder.glob("rejects/*.parquet")]
    listed = _listed(manifest)
    return sorted(path for path in files if path.relative_to(folder).as_posix() not in listed)


def _check_part(path: Path, part: Part) -> None:
    try:
        with pq.ParquetFile(path) as file:
            rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            if rows != [rows for rows, _ in part.row_groups] or sum(rows) != part.file.rows:
                raise DamagedError(f"{path} does not have the row groups of its manifest")
            for group, (_, images) in enumerate(part.row_groups):
                ids = file.read_row_group(group, columns=["image_id"])["image_id"]
                if len(image_starts(ids)) != images:
                    raise DamagedError(f"{path}, row group {group}: not {images:,} images")
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
