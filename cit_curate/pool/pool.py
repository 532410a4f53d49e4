"""A pool that was built: its counts, its pairs by row group, its images by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.captions import Cleaning
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.pool.catalog import catalog_problem, rebuild_catalog
from cit_curate.pool.format import Part, PoolManifest, SourceEntry, read_manifest
from cit_curate.pool.images import MAX_IMAGE_BYTES, read_image_bytes
from cit_curate.pool.ingest import Progress, build_pool, changed_sources
from cit_curate.pool.parts import image_starts
from cit_curate.records import PAIR_COLUMNS
from cit_curate.sources.columns import Columns
from cit_curate.sources.source import Format, find_sources
from indexes.durable import check_file


@dataclass(frozen=True)
class RowGroup:
    """Where a row group lies (`part`, and `group` within it), and what it holds."""

    part: int
    group: int
    rows: int
    images: int


class Pool:
    """A pool folder, opened for reading.

    Attributes:
        path: The folder.
        manifest: All of `pool.json`.
        row_groups: Every row group, in the order of the files.
    """

    def __init__(self, path: Path, manifest: PoolManifest) -> None:
        self.path = path
        self.manifest = manifest
        self.row_groups = tuple(
            RowGroup(part, group, rows, images)
            for part, entry in enumerate(manifest.parts)
            for group, (rows, images) in enumerate(entry.row_groups)
        )
        self._image_roots = {source.name: Path(source.image_root) for source in manifest.sources}

    @classmethod
    def build(
        cls,
        sources: Sequence[str | Path],
        out: str | Path,
        *,
        columns: Columns | None = None,
        format: Format = "auto",
        image_root: str | Path | None = None,
        clean: Cleaning = "none",
        name: str | None = None,
        max_reject_ratio: float = 0.01,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> "Pool":
        """Build a pool and open it; the arguments and errors of `find_sources` and `build_pool`."""
        found = find_sources(
            [Path(source) for source in sources],
            format=format,
            image_root=None if image_root is None else Path(image_root),
        )
        manifest = build_pool(
            found,
            Path(out),
            columns=columns or Columns(),
            clean=clean,
            name=name,
            max_reject_ratio=max_reject_ratio,
            overwrite=overwrite,
            progress=progress or (lambda what, rows: None),
        )
        return cls(Path(out), manifest)

    @classmethod
    def open(cls, path: str | Path) -> "Pool":
        """Open a pool after a cheap check: every file is there and has its size.

        Raises:
            ConfigError: There is no pool.
            DamagedError: A file is missing or cut; `verify` checks every byte.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        for part in manifest.parts:
            check_file(folder, part.file, full=False)
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.manifest.name

    @property
    def fingerprint(self) -> str:
        """Tells whether two pools have the same pairs in the same order."""
        return self.manifest.fingerprint

    @property
    def num_pairs(self) -> int:
        """Pairs in the pool."""
        return self.manifest.num_pairs

    @property
    def num_images(self) -> int:
        """Images (distinct ids) in the pool."""
        return self.manifest.num_images

    @property
    def sources(self) -> tuple[SourceEntry, ...]:
        """What the pool was built from."""
        return self.manifest.sources

    @property
    def parts(self) -> tuple[Part, ...]:
        """The Parquet files."""
        return self.manifest.parts

    @property
    def has_images(self) -> bool:
        """True when some pair names an image file; web addresses do not count."""
        return self.manifest.num_with_image > 0

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.file.bytes for part in self.parts)

    def read_row_groups(self, groups: Sequence[int]) -> pa.Table:
        """The pairs of some row groups, in the order asked for: `PAIR_COLUMNS`, one chunk each.

        Raises:
            DamagedError: A part cannot be read.
        """
        tables = []
        for part, places in groupby(groups, key=lambda place: self.row_groups[place].part):
            wanted = [self.row_groups[place].group for place in places]
            path = self.path / self.parts[part].file.path
            try:
                with pq.ParquetFile(path, pre_buffer=False) as file:
                    tables.append(file.read_row_groups(wanted, columns=list(PAIR_COLUMNS)))
            except (pa.ArrowInvalid, OSError) as error:
                raise DamagedError(
                    f"{path} cannot be read: {error}; see: cit pool verify {self.path}"
                ) from error
        return pa.concat_tables(tables).select(list(PAIR_COLUMNS)).combine_chunks()

    def image_bytes(self, image_uri: str, source: str, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
        """The bytes of a pair's image; read nowhere but here.

        Args:
            image_uri: The pair's `image_uri`: a path, or a place in an archive (`image_uri.py`).
            source: The pair's `source`, which says what the path is relative to.
            max_bytes: A larger file is refused.

        Raises:
            ImageRejected: Missing, damaged, outside its image root, a web address, or too large.
            ConfigError: The pool has no such source.
        """
        root = self._image_roots.get(source)
        if root is None:
            known = ", ".join(list(self._image_roots)[:5])
            raise ConfigError(f"{self.path} has no source {source!r}; it has {known}")
        return read_image_bytes(root, image_uri, max_bytes=max_bytes)

    def rebuild_catalog(self) -> Path:
        """Write `pool.duckdb` anew, and give its path."""
        return rebuild_catalog(self.path, self.manifest)


def verify_pool(folder: Path) -> list[str]:
    """Check a pool byte for byte: hashes, footers, counts, row groups, images.

    Returns:
        Notes that are no damage: sources that changed since, a catalog to rebuild.

    Raises:
        ConfigError: There is no pool.
        DamagedError: Names every damaged file.
    """
    manifest = read_manifest(folder)
    problems: list[str] = []
    for part in manifest.parts:
        try:
            _check_part(check_file(folder, part.file), part)
        except DamagedError as error:
            problems.append(str(error))
    for entry in manifest.reject_parts:
        try:
            path = check_file(folder, entry)
            if pq.read_metadata(path).num_rows != entry.rows:
                problems.append(f"{path} has not the {entry.rows:,} rows of its manifest")
        except DamagedError as error:
            problems.append(str(error))
    if sum(part.file.rows for part in manifest.parts) != manifest.num_pairs:
        problems.append(f"{folder}/pool.json counts {manifest.num_pairs:,} pairs, its parts do not")
    images = sum(images for part in manifest.parts for _, images in part.row_groups)
    if images != manifest.num_images:
        problems.append(f"{folder}/pool.json counts {manifest.num_images:,} images, not {images:,}")
    listed = {part.file.path for part in manifest.parts}
    listed |= {entry.path for entry in manifest.reject_parts}
    for path in sorted([*folder.glob("pairs/*.parquet"), *folder.glob("rejects/*.parquet")]):
        if path.relative_to(folder).as_posix() not in listed:
            problems.append(f"{path} belongs to no manifest")
    if problems:
        raise DamagedError(
            f"{folder} is damaged: {'; '.join(problems)}; build it again from its sources "
            "(cit pool build … --overwrite)"
        )
    catalog = catalog_problem(folder, manifest)
    notes = [] if catalog is None else [f"{catalog}; mend it with: cit pool repair {folder}"]
    return notes + changed_sources(manifest)


def _check_part(path: Path, part: Part) -> None:
    try:
        with pq.ParquetFile(path) as file:
            rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            if rows != [rows for rows, _ in part.row_groups] or sum(rows) != part.file.rows:
                raise DamagedError(f"{path} has not the row groups of its manifest")
            for group, (_, images) in enumerate(part.row_groups):
                ids = file.read_row_group(group, columns=["image_id"])["image_id"]
                if len(image_starts(ids)) != images:
                    raise DamagedError(f"{path}, row group {group}: not {images:,} images")
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
