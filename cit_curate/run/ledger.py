"""The run folder: append-only Parquet tables of the pairs that each outer step kept and used.

An outer step is one commit. Its tables (and its checkpoint, if it trains) are written first, each
whole or absent. Then comes `manifests/step=NNNNNN.json`, which names every file with rows, bytes
and SHA-256; the rename of that manifest is the commit. Readers see only the files that a manifest
names. Files that a killed run left after its last commit are removed by `Run.roll_back`, and made
again identically.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.records import PoolCursor
from cit_curate.run.counts import COUNTS_BY_KEY, refuse_same_keys
from cit_curate.run.ledger_tables import LEDGER_TABLES, SCHEMAS, LedgerTable, as_now, write_rows
from cit_curate.run.metrics_log import append_record, keep_records, read_records
from cit_curate.run.paths import step_folder
from cit_curate.storage.durable import (
    FileEntry,
    atomic_folder,
    check_file,
    describe_file,
    file_entry,
    read_json,
    remove_folder,
    sweep_temporary,
    write_json,
    write_listing,
    write_sealed,
)
from cit_curate.storage.remote import refuse_remote_run
from cit_curate.storage.replace_folder import replacing

if TYPE_CHECKING:  # they import DuckDB, which few users of a run need
    from cit_curate.pool.mixture import PoolMixture
    from cit_curate.run.query import PairSource, RunDatabase

FORMAT_VERSION = 1

# The files that a run starts with; `head.json` has their hashes.
HEAD_FILES = ("config.json", "environment.json")


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One outer step that is wholly on disk.

    Attributes:
        outer_step: Its number, from 0.
        update: The updates that the weights had seen when it was committed.
        cursors: The position of each lane's scan, by lane.
        files: The ledger files of this outer step.
        checkpoint: The folder of the weights, relative to the run; None = nothing was trained.
        best: The best evaluation so far, as the trainer wrote it; None = there is none yet.
    """

    outer_step: int
    update: int
    cursors: tuple[PoolCursor, ...]
    files: tuple[FileEntry, ...]
    checkpoint: str | None = None
    best: Mapping[str, Any] | None = None


class Run:
    """A run folder: written by one curation or training at a time, read by any process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        overwrite: bool = False,
    ) -> "Run":
        """Start a run in a folder that is absent or empty.

        Raises:
            ConfigError: See `check_free`.
        """
        cls.check_free(path, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporary(path.parent, below=False)
        remove_folder(path)
        with atomic_folder(path) as temporary:
            _write_head(temporary, config, environment)
        return cls(path)

    @classmethod
    @contextmanager
    def create_whole(
        cls,
        path: Path,
        *,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        overwrite: bool = False,
    ) -> Iterator["Run"]:
        """Make a whole run: it appears at `path`, with all its commits, when the block succeeds.

        A kill leaves what was there before. The caller holds the lock of `path`.

        Raises:
            ConfigError: See `check_free`; another writer may have finished just before.
        """
        cls.check_free(path, overwrite=overwrite)
        with replacing(path.absolute()) as folder:
            _write_head(folder, config, environment)
            yield cls(folder)

    @staticmethod
    def check_free(path: Path, *, overwrite: bool) -> None:
        """Check that a run may be started in a folder.

        Raises:
            ConfigError: The folder is not empty and `overwrite` is false, or it holds no run.
        """
        refuse_remote_run(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if not overwrite:
                raise ConfigError(
                    f"{path} is not empty; choose another --out, or replace what is there with "
                    "--overwrite (a training run that was stopped resumes with --resume)"
                )
            if path.is_dir() and not (path / "config.json").is_file():
                raise ConfigError(
                    f"{path} is not a run folder (it has no config.json), so --overwrite leaves it "
                    "alone; choose another --out"
                )

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Open a run folder to read or resume it.

        Raises:
            ConfigError: There is no run at `path`.
        """
        refuse_remote_run(path)
        path = Path(path)
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"{path} is not a run folder: it has no config.json; "
                "make one with `cit curate` or `cit train`"
            )
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration that the run was started with."""
        return dict(read_json(self.path / "config.json"))

    @property
    def environment(self) -> dict[str, Any]:
        """The environment that the run was started in; see `describe_environment`."""
        return dict(read_json(self.path / "environment.json"))

    @property
    def has_several_pools(self) -> bool:
        """Whether the run was made from a mixture; a pair is then identified by pool and key."""
        return bool(self.config.get("pools"))

    def commits(self, *, last: int | None = None) -> list[Commit]:
        """The committed outer steps, in order.

        Args:
            last: The number of commits to read, from the end; None = all.

        Raises:
            DamagedError: A manifest is damaged, or one before the last is missing.
        """
        paths = sorted((self.path / "manifests").glob("step=*.json"))
        first = 0 if last is None else max(len(paths) - last, 0)
        commits = [read_commit(path) for path in paths[first:]]
        for expected, commit in enumerate(commits, first):
            if commit.outer_step != expected:
                raise DamagedError(
                    f"{self.path}/manifests lacks outer step {expected}; "
                    f"the next one there is {commit.outer_step}"
                )
        return commits

    def files(self, table: LedgerTable) -> list[Path]:
        """The committed Parquet files of one ledger table, by outer step and lane.

        Raises:
            DamagedError: A file is missing, or its size differs from the manifest.
        """
        entries = [entry for commit in self.commits() for entry in commit.files]
        return [
            check_file(self.path, entry, full=False)
            for entry in entries
            if entry.path.startswith(f"{table}/")
        ]

    def read(self, table: LedgerTable) -> pa.Table:
        """One ledger table over all committed outer steps."""
        schema = SCHEMAS[table]
        parts = [as_now(pq.ParquetFile(path).read(), schema) for path in self.files(table)]
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def database(
        self,
        pool: "PairSource | PoolMixture | None" = None,
        *,
        commits: Sequence[Commit] | None = None,
    ) -> "RunDatabase":
        """The ledger as SQL views; with a pool, its pairs too.

        Args:
            pool: The pool or mixture that the run was made from.
            commits: The outer steps that the views show; None = all that are committed now.
        """
        from cit_curate.run.query import RunDatabase

        steps = self.commits() if commits is None else commits
        files = [entry for commit in steps for entry in commit.files]
        return RunDatabase(self.path, files, pool, has_several_pools=self.has_several_pools)

    def counts(self) -> dict[str, int]:
        """The curated dataset: how often training used each pair, by pair key.

        In a run that only curated, it is how often each pair was selected. Memory holds only the
        result, however long the ledger is; `cit export` does not even need that.

        Raises:
            ConfigError: Two pools have pairs with the same key, so a key is ambiguous.
        """
        from cit_curate.run.query import EXPORT_BATCH_ROWS

        counts: dict[str, int] = {}
        last = None
        with self.database() as database:
            for batch in database.batches(COUNTS_BY_KEY, EXPORT_BATCH_ROWS):
                last = refuse_same_keys(batch["pair_key"], last)
                keys, values = batch["pair_key"].to_pylist(), batch["count"].to_pylist()
                counts.update(zip(keys, values, strict=True))
        return counts

    def write_table(
        self, table: LedgerTable, rows: pa.Table, *, outer_step: int, lane: int
    ) -> FileEntry:
        """Write one table of one outer step and lane; it takes effect once a commit names it."""
        return self.write_batches(table, rows.to_batches(), outer_step=outer_step, lane=lane)

    def write_batches(
        self, table: LedgerTable, batches: Iterable[pa.RecordBatch], *, outer_step: int, lane: int
    ) -> FileEntry:
        """As `write_table`, for more rows than memory holds."""
        path = self.path / table / step_folder(outer_step) / f"lane={lane:05d}.parquet"
        rows = write_rows(path, table, batches)
        return describe_file(path, self.path, rows=rows)

    def commit(self, commit: Commit) -> None:
        """Make an outer step part of the run, atomically.

        The first commit also names `metadata.json`, whose rows `metadata_id` counts.
        """
        metadata = self.path / "metadata.json"
        if commit.outer_step == 0 and metadata.is_file():
            entry = describe_file(metadata, self.path, rows=0)
            commit = replace(commit, files=(*commit.files, entry))
        value = {"format_version": FORMAT_VERSION, **asdict(commit)}
        write_sealed(self.path / "manifests" / f"{step_folder(commit.outer_step)}.json", value)

    def roll_back(self, *, keep_update: int | None = None) -> Commit | None:
        """Remove all that was written after the last commit.

        Args:
            keep_update: The update after which the next outer step was stopped midway; the shards
                of that outer step, and its metrics up to that update, stay. None = it was not.

        Returns:
            The last commit; None = the run has none.
        """
        sweep_temporary(self.path)
        commits = self.commits()
        for table in LEDGER_TABLES:
            for folder in (self.path / table).glob("step=*"):
                if _step_number(folder) >= len(commits):
                    remove_folder(folder)
        for folder in (self.path / "shards").glob("step=*"):
            if _step_number(folder) >= len(commits) + (keep_update is not None):
                remove_folder(folder)
                continue
            for marker in folder.glob("*.failed"):
                marker.unlink()
        last = commits[-1] if commits else None
        outer_step, update = (last.outer_step, last.update) if last else (-1, -1)
        update = max(update, keep_update or -1)
        keep_records(
            self.path / "metrics.jsonl",
            lambda line: line["update"] <= update and line.get("outer_step", -1) <= outer_step,
        )
        return last

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; every record has its `update`."""
        append_record(self.path / "metrics.jsonl", record)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a last line cut by a kill is left out.

        Raises:
            DamagedError: A line is no JSON object, or has changed since it was written.
        """
        return read_records(self.path / "metrics.jsonl")


def _write_head(folder: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    (folder / "manifests").mkdir()
    for name, value in (("environment.json", environment), ("config.json", config)):
        write_json(folder / name, value)
    write_listing(folder / "head.json", [folder / name for name in HEAD_FILES])


def _step_number(folder: Path) -> int:
    return int(folder.name.removeprefix("step="))


def read_commit(path: Path) -> Commit:
    """Read a commit from its manifest.

    Raises:
        DamagedError: The manifest is missing or damaged, or has another format version.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is damaged: it is no JSON object")
    version = value.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise DamagedError(f"{path} has format version {version}; this cit reads {FORMAT_VERSION}")
    try:
        cursors = tuple(PoolCursor(**cursor) for cursor in value.pop("cursors"))
        files = tuple(file_entry(entry, str(path)) for entry in value.pop("files"))
        return Commit(cursors=cursors, files=files, **value)
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
