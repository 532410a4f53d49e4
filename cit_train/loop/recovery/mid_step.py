"""The state that is saved in the middle of an outer step.

```
RUN/mid_step.json        outer step, update, checkpoint, best, and the files below; the run resumes
                         here once this file has been renamed into place
RUN/mid_step/step=000007/lane=00000.json                  the scan: cursor, totals
RUN/mid_step/step=000007/lane=00000-selected.parquet      the selection, with captions and images
RUN/mid_step/step=000007/lane=00000-surplus.parquet       kept, but not requested yet
RUN/mid_step/step=000007/lane=00000-near_misses.parquet
RUN/mid_step/step=000007/lane=00000-reserve.parquet       of a run with --balance
```
The shards of the outer step stay in their folder; a resumed run continues after the last closed
one. The commit of the outer step removes the mid-step files.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cit_curate.curation.curator import LaneSelection
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_state import state_from_json, state_to_json
from cit_curate.errors import DamagedError
from cit_curate.run.ledger import Run
from cit_curate.run.paths import step_folder
from cit_curate.storage.durable import (
    FileEntry,
    atomic_file,
    check_file,
    describe_file,
    file_entry,
    read_json,
    remove_folder,
    write_json,
    write_sealed,
)
from cit_train.loop.recovery.checkpoint import check_checkpoint

_TABLES = ("selected", "surplus", "near_misses")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MidStep:
    """A saved state within an outer step that a run can resume from.

    Attributes:
        outer_step: The number of the outer step.
        update: Updates made.
        checkpoint: The folder of the weights after that update, relative to the run.
        files: The selection and scan files of every lane.
        best: The best evaluation so far.
        owes_evaluation: Whether the update is still to be evaluated.
    """

    outer_step: int
    update: int
    checkpoint: str
    files: tuple[FileEntry, ...]
    best: Mapping[str, Any] | None
    owes_evaluation: bool


def write_mid_step(run: Run, mid_step: MidStep) -> None:
    """Let the run resume from `mid_step`, whose files and checkpoint are already written."""
    write_sealed(run.path / "mid_step.json", asdict(mid_step))


def read_mid_step(run: Run) -> MidStep | None:
    """The state saved since the last commit; None if there is none, or if it is damaged."""
    path = run.path / "mid_step.json"
    try:
        return load_mid_step(run, num_commits=len(run.commits())) if path.exists() else None
    except DamagedError as error:
        logger.warning("cannot resume from %s: %s; resuming from the last commit", path, error)
        return None


def load_mid_step(run: Run, *, num_commits: int) -> MidStep | None:
    """The saved state, fully checked; None if it is older than the last commit.

    Raises:
        DamagedError: The state, one of its files or its checkpoint is damaged.
    """
    path = run.path / "mid_step.json"
    value = read_json(path)
    try:
        files = tuple(file_entry(entry, str(path)) for entry in value.pop("files"))
        mid_step = MidStep(files=files, **value)
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error!r}") from error
    if mid_step.outer_step != num_commits:
        return None
    for entry in mid_step.files:
        check_file(run.path, entry)
    check_checkpoint(run.path / mid_step.checkpoint)
    return mid_step


def remove_mid_step(run: Run) -> None:
    """Remove the saved state and its files."""
    (run.path / "mid_step.json").unlink(missing_ok=True)
    remove_folder(run.path / "mid_step")


def write_selection(run: Run, selection: LaneSelection) -> list[FileEntry]:
    """Write one lane's selection and scan; tables of an earlier save are equal, and stay."""
    scan, state = selection.scan, selection.state
    stem = _stem(run, scan.step.number, scan.lane)
    stem.parent.mkdir(parents=True, exist_ok=True)
    tables = {
        "selected": selection.rows,
        "surplus": state.surplus,
        "near_misses": state.near_misses,
    }
    if state.reserve is not None:
        tables["reserve"] = state.reserve
    value = {
        "update": scan.step.update,
        "encoder": scan.step.encoder,
        **state_to_json(state),
    }
    entries = []
    for name, table in tables.items():
        path = stem.with_name(f"{stem.name}-{name}.parquet")
        if not path.exists():
            with atomic_file(path) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        entries.append(describe_file(path, run.path, rows=len(table)))
    path = stem.with_name(f"{stem.name}.json")
    write_json(path, value)
    return [*entries, describe_file(path, run.path, rows=0)]


def read_selection(run: Run, scan: LaneScan) -> LaneSelection:
    """Read the saved selection of a lane, and restore the state of its scan.

    Args:
        run: The run.
        scan: The scan of the same lane and outer step, before its first caption.

    Raises:
        DamagedError: The selection was made with another text encoder.
    """
    stem = _stem(run, scan.step.number, scan.lane)
    value = read_json(stem.with_name(f"{stem.name}.json"))
    if value["encoder"] != scan.step.encoder:
        raise DamagedError(
            f"{stem}.json was made with another text encoder than that of the last commit; remove "
            f"{run.path}/mid_step.json to resume from that commit"
        )
    tables = {
        name: pq.ParquetFile(path).read()
        for name in (*_TABLES, "reserve")
        if (path := stem.with_name(f"{stem.name}-{name}.parquet")).exists() or name in _TABLES
    }
    selected = tables.pop("selected")
    state = state_from_json(value, **tables)
    scan.resume_from(state)
    return LaneSelection(scan, selected, state)


def _stem(run: Run, outer_step: int, lane: int) -> Path:
    return run.path / "mid_step" / step_folder(outer_step) / f"lane={lane:05d}"
