"""An open pool: its counts, its pairs by row group, its images by URI."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cit_curate.arrow_numpy import arrow_of
from cit_curate.config import (
    IN_PROCESS,
    READ_AS_FOUND,
    Cleaning,
    EngineConfig,
    Format,
    ReadConfig,
)
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.addresses import WEB_ADDRESS
from cit_curate.images.read import MAX_IMAGE_BYTES, read_image_bytes
from cit_curate.images.root import ImageRoot, image_root
from cit_curate.pool.catalog import rebuild_catalog
from cit_curate.pool.format import Part, PoolManifest, RowGroup, SourceEntry, read_manifest
from cit_curate.pool.parts import image_starts
from cit_curate.pool.remote_pool import FETCHES, RemotePool
from cit_curate.pool.token_files import TokenFiles
from cit_curate.records import PAIR_COLUMNS
from cit_curate.storage.durable import check_file, sweep_temporary
from cit_curate.storage.remote import remote_url

if TYPE_CHECKING:
    from cit_curate.pool.build.ingest import Progress
    from cit_curate.sources.columns import Columns


class Pool:
    """A pool folder, or a pool in a store, opened for reading.

    Attributes:
        path: The folder; for a pool in a store, where `fetch` puts its Parquet files.
        location: The folder or the URL, for messages.
        manifest: All of `pool.json`.
        row_groups: Every row group, in the order of the files.
    """

    def __init__(
        self, path: Path, manifest: PoolManifest, *, remote: RemotePool | None = None
    ) -> None:
        self.path = path
        self.location = str(path) if remote is None else remote.url
        self._remote = remote
        self.manifest = manifest
        self.row_groups = tuple(
            RowGroup(part, group, rows, images)
            for part, entry in enumerate(manifest.parts)
            for group, (rows, images) in enumerate(entry.row_groups)
        )
        self._image_roots: dict[str, ImageRoot] = {}

    @classmethod
    def build(
        cls,
        sources: Sequence[str | Path],
        out: str | Path,
        *,
        columns: "Columns | None" = None,
        format: Format = "auto",
        image_root: str | Path | None = None,
        clean: Cleaning = "none",
        name: str | None = None,
        reading: ReadConfig = READ_AS_FOUND,
        max_reject_ratio: float | None = None,
        allow_missing_images: bool = False,
        engine: EngineConfig = IN_PROCESS,
        overwrite: bool = False,
        progress: "Progress | None" = None,
    ) -> "Pool":
        """Build a pool and open it; see `find_sources` and `build_pool` for the arguments."""
        # Imported here, since they load the readers of all sources.
        from cit_curate.pool.build.ingest import build_pool
        from cit_curate.sources.columns import Columns
        from cit_curate.sources.source import find_sources

        opened = find_sources(
            [Path(source) for source in sources],
            format=format,
            image_root=None if image_root is None else Path(image_root),
            reading=reading,
        )
        manifest = build_pool(
            opened,
            Path(out),
            columns=columns or Columns(),
            clean=clean,
            name=name,
            max_reject_ratio=max_reject_ratio,
            allow_missing_images=allow_missing_images,
            engine=engine,
            overwrite=overwrite,
            progress=progress or (lambda what, rows: None),
        )
        return cls(Path(out), manifest)

    @classmethod
    def open(cls, path: str | Path) -> "Pool":
        """Open a pool after a cheap check: every file is there and has its size.

        The parts of a pool in a store (`s3://BUCKET/POOL`) are fetched when they are first needed.

        Raises:
            ConfigError: There is no pool.
            DamagedError: A file is missing or truncated; `verify` checks every byte.
            ResourceError: The store cannot be reached.
        """
        if (url := remote_url(path)) is not None:
            remote = RemotePool(url)
            return cls(remote.folder, remote.manifest, remote=remote)
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
    def is_remote(self) -> bool:
        """True for a pool in a store."""
        return self._remote is not None

    @property
    def named(self) -> str:
        """The pool in a run's configuration: its absolute folder, or its URL."""
        return str(self.path.resolve()) if self._remote is None else self.location

    @property
    def fingerprint(self) -> str:
        """A hash that is equal for pools with the same pairs in the same order."""
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
        """True if some pair names an image file; web addresses do not count.

        That includes a pool whose images were not there when it was built.
        """
        if self.manifest.num_with_image or self.is_remote:
            return self.manifest.num_with_image > 0
        from cit_curate.pool.build.summary import read_build_report

        return read_build_report(self.path).counts.get("num_images_tried", 0) > 0

    def num_web_images(self) -> int:
        """The number of images that are web addresses, counted in the parts.

        Raises:
            DamagedError: A part cannot be read.
        """
        count = 0
        for path in self._paths(range(len(self.parts))):
            try:
                pairs = pq.read_table(path, columns=["image_id", "image_uri"], partitioning=None)
            except (pa.ArrowException, OSError) as error:
                raise DamagedError(
                    f"{path} cannot be read: {error}; see: cit pool verify {self.location}"
                ) from error
            uris = pairs["image_uri"].take(arrow_of(image_starts(pairs["image_id"])))
            count += pc.sum(pc.match_substring_regex(uris, WEB_ADDRESS)).as_py() or 0
        return count

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.file.bytes for part in self.parts)

    def read_row_groups(self, groups: Sequence[int]) -> pa.Table:
        """The pairs of some row groups, in the requested order: `PAIR_COLUMNS`, one chunk each.

        Raises:
            DamagedError: A part cannot be read.
        """
        return pa.concat_tables(self.tables(groups)).combine_chunks()

    def tables(
        self,
        groups: Sequence[int],
        *,
        dictionaries: Sequence[str] = (),
        tokens: TokenFiles | None = None,
    ) -> Iterator[pa.Table]:
        """The pairs of some row groups, in the requested order: a table per part, `PAIR_COLUMNS`.

        Args:
            groups: Numbers of row groups; consecutive ones of one part are read at once.
            dictionaries: Columns to read dictionary-encoded, for values that repeat.
            tokens: Token files of the pool; the tables then have the column `tokens`.

        Raises:
            DamagedError: A part cannot be read.
        """
        columns = list(PAIR_COLUMNS)
        runs = [
            (part, [self.row_groups[number].group for number in run])
            for part, run in groupby(groups, key=lambda number: self.row_groups[number].part)
        ]
        for (part, chosen), path in zip(runs, self._paths([part for part, _ in runs]), strict=True):
            try:
                with pq.ParquetFile(
                    path, pre_buffer=False, read_dictionary=list(dictionaries)
                ) as file:
                    table = file.read_row_groups(chosen, columns=columns).select(columns)
            except (pa.ArrowInvalid, OSError) as error:
                raise DamagedError(
                    f"{path} cannot be read: {error}; see: cit pool verify {self.location}"
                ) from error
            yield table if tokens is None else tokens.with_tokens(table, part, chosen)

    def token_files(self, key: str) -> TokenFiles | None:
        """The tokens of the pool's captions under a tokenizer (`TextEncoder.tokenizer_key`).

        Returns:
            None if they were not written, or the pool is in a store.

        Raises:
            DamagedError: One of their files is missing or truncated.
        """
        if self._remote is not None:
            return None
        return TokenFiles.open(self.path, self.manifest, key)

    def image_bytes(self, image_uri: str, source: str, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
        """The bytes of a pair's image; no other method reads images.

        Args:
            image_uri: The pair's `image_uri`: a path, or a member of an archive (`image_uri.py`).
            source: The pair's `source`, which determines the path's root.
            max_bytes: Size limit; a larger file is rejected.

        Raises:
            ImageRejected: Missing, damaged, outside its image root, a web address, or too large.
            ConfigError: The pool has no such source.
        """
        root = self._image_roots.get(source)
        if root is None:
            root = self._image_roots[source] = self._image_root(source)
        return read_image_bytes(root, image_uri, max_bytes=max_bytes)

    def part_path(self, part: int) -> Path:
        """A part's Parquet file; for a pool in a store its local copy, to be opened at once."""
        return next(self._paths([part]))

    def fetch(self, progress: Callable[[int, int], None] = lambda done, total: None) -> "Pool":
        """Make sure that all parts lie below `path`, for SQL over them; returns the pool itself.

        Args:
            progress: Callback with the bytes done and all bytes, for a pool in a store.
        """
        if self._remote is not None:
            self._remote.hold_all(progress)
            self.path = self._remote.folder
        return self

    def rebuild_catalog(self) -> Path:
        """Write `pool.duckdb` again and remove leftovers of killed writers; returns its path.

        Raises:
            ConfigError: The pool is in a store, where a catalog has no use.
        """
        if self._remote is not None:
            raise ConfigError(f"{self.location} is in a store; a catalog is for a pool on a disk")
        sweep_temporary(self.path)
        return rebuild_catalog(self.path, self.manifest)

    def _paths(self, parts: Sequence[int]) -> Iterator[Path]:
        """The parts' files; those of a pool in a store are fetched `FETCHES` at a time."""
        if self._remote is None:
            yield from (self.path / self.parts[part].file.path for part in parts)
            return
        for first in range(0, len(parts), FETCHES):
            entries = [self.parts[part].file for part in parts[first : first + FETCHES]]
            yield from self._remote.copies(entries)

    def _image_root(self, name: str) -> ImageRoot:
        source = next((source for source in self.sources if source.name == name), None)
        if source is None:
            known = ", ".join(source.name for source in self.sources[:5])
            raise ConfigError(f"{self.location} has no source {name!r}; it has {known}")
        pool_url = None if self._remote is None else self._remote.url
        return image_root(source.image_root, pool_url=pool_url)
