"""Rolling a run back to an outer step that it can resume from.

Uncommitted files are removed; commits that are rolled back are moved to RUN/damaged.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from cit_curate.errors import DamagedError
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import LEDGER_TABLES
from cit_curate.run.paths import step_folder
from cit_curate.storage.durable import remove_folder
from cit_train.loop.recovery.checkpoint import check_checkpoint, checkpoints_except, point_to
from cit_train.loop.recovery.find import needed_checkpoints
from cit_train.loop.recovery.mid_step import MidStep, read_mid_step, remove_mid_step

logger = logging.getLogger(__name__)


def roll_back(run: Run) -> tuple[Commit | None, MidStep | None]:
    """Remove the files that are newer than the last commit, or than a state saved after it.

    A run whose last checkpoint is damaged is rolled back to the one before.

    Returns:
        The last commit and the state saved after it; None for one that does not exist.
    """
    commits = run.commits()
    kept = commits[: whole_checkpoints(run, commits)]
    if kept and len(kept) < len(commits):
        logger.warning(
            "resuming after outer step %d instead; what came after it is in %s",
            *(kept[-1].outer_step, run.path / "damaged"),
        )
        roll_back_to(run, kept)
    mid_step = read_mid_step(run)
    last = run.roll_back(keep_update=mid_step.update if mid_step else None)
    if mid_step is None:
        remove_mid_step(run)
    update = mid_step.update if mid_step else last.update if last else -1
    for path in checkpoints_except(run.path, []):
        if int(path.name.removeprefix("update-")) > update:
            remove_folder(path)
    if last is not None and last.checkpoint is not None:
        point_to(run.path, "last", last.checkpoint)
        if last.best:
            point_to(run.path, "best", last.best["checkpoint"])
    return last, mid_step


def whole_checkpoints(run: Run, commits: Sequence[Commit]) -> int:
    """The number of commits to keep so that the run can resume from the last of them.

    Returns:
        The largest number whose last commit has whole checkpoints to resume from; 0 for none.
    """
    for number in range(len(commits), 0, -1):
        try:
            for name in needed_checkpoints(commits[:number], run.config, for_resume=True):
                check_checkpoint(run.path / name)
        except DamagedError as error:
            logger.warning("cannot resume after outer step %d: %s", number - 1, error)
        else:
            return number
    return 0


def later_paths(run: Run, commits: Sequence[Commit]) -> list[Path]:
    """The paths of later outer steps: manifests, tables, checkpoints, and the mid-step state."""
    first = step_folder(len(commits))
    update = commits[-1].update if commits else -1
    manifests = (run.path / "manifests").glob("step=*.json")
    tables = (folder for table in LEDGER_TABLES for folder in (run.path / table).glob("step=*"))
    checkpoints = (run.path / "checkpoints").glob("update-*")
    middle = [run.path / "mid_step.json", run.path / "mid_step"]
    return [
        *sorted(path for path in manifests if path.stem >= first),
        *sorted(path for path in tables if path.name >= first),
        *sorted(path for path in checkpoints if int(path.name.removeprefix("update-")) > update),
        *(path for path in middle if path.exists()),
    ]


def roll_back_to(run: Run, commits: Sequence[Commit]) -> None:
    """Put aside all files that are newer than the last of these commits, and remove the shards.

    Manifests go first, the newest one before the others. So a kill at any moment leaves no gap, and
    the next attempt removes or puts aside the files that lost their manifest.
    """
    paths = later_paths(run, commits)
    manifests = [path for path in paths if path.parent.name == "manifests"]
    put_aside(run, [*reversed(manifests), *(path for path in paths if path not in manifests)])
    for folder in (run.path / "shards").glob("step=*"):
        if folder.name >= step_folder(len(commits)):
            remove_folder(folder)
    (run.path / "status.json").unlink(missing_ok=True)


def put_aside(run: Run, paths: Iterable[Path]) -> None:
    """Move files and folders of a run to the same path below RUN/damaged; nothing is replaced."""
    for path in paths:
        aside = run.path / "damaged" / path.relative_to(run.path)
        number = 0
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{path.name}.{number}")
        aside.parent.mkdir(parents=True, exist_ok=True)
        path.rename(aside)
