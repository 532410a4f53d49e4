"""A long scan that is saved as it goes, so that after a kill the same command goes on from there.

```
.staging-RUN/<digest of all that the scan depends on>/
  lane=00000/scan.json                     its cursor and totals, and the files below; sealed
  lane=00000/kept-000003.parquet           the pairs kept between two saves
  lane=00000/near_misses-000003.parquet    the best pairs that were not kept, at the last save
```
The rename of `scan.json` is the commit of a save. A resumed scan has every kept pair as surplus,
and makes the same selection.
"""

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_rows import SCORED_SCHEMA
from cit_curate.curation.scan_state import state_from_json, state_to_json
from cit_curate.errors import DamagedError
from cit_curate.storage.durable import (
    FileEntry,
    atomic_file,
    check_file,
    describe_file,
    file_entry,
    read_json,
    remove_folder,
    write_sealed,
)

logger = logging.getLogger(__name__)

JOURNAL_VERSION = 2
# A save takes a few hundredths of a second.
SAVE_SECONDS = 15.0


class ScanJournal:
    """The saves of one lane's scan."""

    def __init__(self, folder: Path, scan: LaneScan) -> None:
        """Resume a scan from its last save, if there is one.

        Args:
            folder: The folder of all lanes' saves.
            scan: The scan, before its first caption.
        """
        self._folder = folder / f"lane={scan.lane:05d}"
        self._scan = scan
        self._kept: list[FileEntry] = []
        self._waiting: list[pa.Table] = []
        self._num_saves = 0
        try:
            self._resume()
        except DamagedError as error:
            logger.warning("%s; the scan of lane %d starts over", error, scan.lane)
            remove_folder(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()

    def __enter__(self) -> "ScanJournal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # the next lane may take as long
            self.save()

    def add(self, kept: pa.Table) -> None:
        """Add the pairs that a batch kept, once it is counted; now and then they are saved."""
        self._waiting.append(kept)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Save the scan as it is now."""
        state = self._scan.state(SCORED_SCHEMA.empty_table())
        missed = self._write("near_misses", state.near_misses)
        if any(map(len, self._waiting)):
            self._kept.append(self._write("kept", pa.concat_tables(self._waiting)))
        self._num_saves += 1
        # Nothing has been taken of a resumed scan, or requested.
        value = state_to_json(replace(state, num_requested=0))
        files = {"kept": [asdict(entry) for entry in self._kept], "near_misses": asdict(missed)}
        write_sealed(
            self._folder / "scan.json", {"num_saves": self._num_saves, "files": files, **value}
        )
        for path in self._folder.glob("near_misses-*.parquet"):
            if path.name != missed.path:
                path.unlink()
        self._waiting = []
        self._saved_at = time.monotonic()

    def _write(self, name: str, table: pa.Table) -> FileEntry:
        path = self._folder / f"{name}-{self._num_saves:06d}.parquet"
        with atomic_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return describe_file(path, self._folder, rows=len(table))

    def _resume(self) -> None:
        """Restore the state of the last save.

        Raises:
            DamagedError: One of its files is missing or damaged.
        """
        path = self._folder / "scan.json"
        if not path.is_file():
            return
        value = read_json(path)
        try:
            self._num_saves = value["num_saves"]
            kept = [file_entry(entry, str(path)) for entry in value["files"]["kept"]]
            missed = file_entry(value["files"]["near_misses"], str(path))
            tables = [self._read(entry) for entry in kept]
            surplus = pa.concat_tables([SCORED_SCHEMA.empty_table(), *tables])
            state = state_from_json(value, near_misses=self._read(missed), surplus=surplus)
        except (KeyError, TypeError) as error:
            raise DamagedError(f"{path} is damaged: {error!r}") from error
        self._scan.resume_from(state)
        self._kept = kept

    def _read(self, entry: FileEntry) -> pa.Table:
        return pq.ParquetFile(check_file(self._folder, entry)).read()
