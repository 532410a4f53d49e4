"""The middle of an outer step: what is saved there, and how a run goes on from it.

```
RUN/mid_step.json        outer step, update, checkpoint, best, and the files below; its rename is
                         the moment from which the run goes on here
RUN/mid_step/step=000007/lane=00000.json                  the scan: cursor, totals
RUN/mid_step/step=000007/lane=00000-selected.parquet      the selection, with captions and images
RUN/mid_step/step=000007/lane=00000-surplus.parquet       kept, but not asked for yet
RUN/mid_step/step=000007/lane=00000-near_misses.parquet
```
The shards of the outer step lie where they always do, and are gone on with after the last closed
one. The commit of the outer step ends all this.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cit_curate.curation.curator import LaneSelection
from cit_curate.curation.lane_scan import LaneScan, ScanState
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.audit import Audit
from cit_curate.errors import DamagedError
from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Run, step_folder
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
    """A place within an outer step that a run can go on from.

    Attributes:
        outer_step: The outer step.
        update: Updates made.
        checkpoint: Folder of the weights after that update, relative to the run.
        files: The selection and the scan of every lane.
        best: The best evaluation so far.
        owes_evaluation: The update is still to be evaluated.
    """

    outer_step: int
    update: int
    checkpoint: str
    files: tuple[FileEntry, ...]
    best: Mapping[str, Any] | None
    owes_evaluation: bool


def write_mid_step(run: Run, place: MidStep) -> None:
    """Make `place` what the run goes on from; its files and its checkpoint are there."""
    write_sealed(run.path / "mid_step.json", asdict(place))


def read_mid_step(run: Run) -> MidStep | None:
    """The middle of the outer step after the last commit; None when nothing (whole) is there."""
    path = run.path / "mid_step.json"
    try:
        return checked_mid_step(run, num_commits=len(run.commits())) if path.exists() else None
    except DamagedError as error:
        logger.warning("%s cannot be gone on from: %s; taking the last commit", path, error)
        return None


def checked_mid_step(run: Run, *, num_commits: int) -> MidStep | None:
    """The middle of an outer step; None when a commit has overtaken it.

    Raises:
        DamagedError: It, one of its files or its checkpoint is damaged.
    """
    path = run.path / "mid_step.json"
    value = read_json(path)
    try:
        files = tuple(file_entry(entry, str(path)) for entry in value.pop("files"))
        place = MidStep(files=files, **value)
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error!r}") from error
    if place.outer_step != num_commits:
        return None
    for entry in place.files:
        check_file(run.path, entry)
    check_checkpoint(run.path / place.checkpoint)
    return place


def remove_mid_step(run: Run) -> None:
    """Forget the middle of an outer step that is committed."""
    (run.path / "mid_step.json").unlink(missing_ok=True)
    remove_folder(run.path / "mid_step")


def write_selection(run: Run, selection: LaneSelection) -> list[FileEntry]:
    """Write one lane's selection and scan; what is there already is the same, and stays."""
    scan, state = selection.scan, selection.state
    stem = _stem(run, scan.step.number, scan.lane)
    stem.parent.mkdir(parents=True, exist_ok=True)
    tables = {
        "selected": selection.rows,
        "surplus": state.surplus,
        "near_misses": state.near_misses,
    }
    # Not asdict: it takes a Counter apart into pairs and counts those.
    audit = state.totals.audit and asdict(state.totals.audit)
    totals = {
        **vars(state.totals),
        "histogram": state.totals.histogram.tolist(),
        "audit": audit,
    }
    value = {
        "update": scan.step.update,
        "encoder": scan.step.encoder,
        "cursor": asdict(state.cursor),
        "totals": totals,
        "num_asked": state.num_requested,
        "taken": list(state.taken),
        "set_aside": list(state.set_aside),
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
    """The selection that was written, and the scan put where it stood then.

    Args:
        run: The run.
        scan: The scan of the same lane and outer step, before its first caption.

    Raises:
        DamagedError: It was made with another encoder.
    """
    stem = _stem(run, scan.step.number, scan.lane)
    value = read_json(stem.with_name(f"{stem.name}.json"))
    if value["encoder"] != scan.step.encoder:
        raise DamagedError(
            f"{stem}.json was made with another text encoder than the last commit holds; remove "
            f"{run.path}/mid_step.json to go on from that commit"
        )
    selected, surplus, near_misses = (
        pq.ParquetFile(stem.with_name(f"{stem.name}-{name}.parquet")).read() for name in _TABLES
    )
    saved = value["totals"]
    totals = ScanTotals(
        **{
            **saved,
            "histogram": np.asarray(saved["histogram"], dtype=np.int64),
            "scanned_of_pool": Counter(saved["scanned_of_pool"]),
            "kept_of_pool": Counter(saved["kept_of_pool"]),
            "audit": saved["audit"] and Audit.from_json(saved["audit"]),
        }
    )
    state = ScanState(
        PoolCursor(**value["cursor"]),
        totals,
        value["num_asked"],
        near_misses,
        surplus,
        value["taken"],
        value.get("set_aside", ()),  # an older version had none
    )
    scan.resume_from(state)
    return LaneSelection(scan, selected, state)


def _stem(run: Run, outer_step: int, lane: int) -> Path:
    return run.path / "mid_step" / step_folder(outer_step) / f"lane={lane:05d}"
