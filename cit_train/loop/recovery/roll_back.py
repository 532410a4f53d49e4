"""Rolling a run back to an outer step that it can go on from.

What nobody has committed is removed; commits that are taken out are kept in RUN/damaged.
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
    """Remove what is younger than the last commit, and than the middle of an outer step after it.

    A run whose last checkpoint is damaged goes on from the one before.

    Returns:
        The last commit and the middle of an outer step; None where there is none.
    """
    commits = run.commits()
    kept = commits[: whole_checkpoints(run, commits)]
    if kept and len(kept) < len(commits):
        logger.warning(
            "going on after outer step %d instead; what came after it is in %s",
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
    """How many of the commits to keep, so that the run can go on from the last of them.

    Returns:
        The largest number whose last commit has all checkpoints that it needs, whole; 0 for none.
    """
    for number in range(len(commits), 0, -1):
        try:
            for name in needed_checkpoints(commits[:number], run.config, to_go_on=True):
                check_checkpoint(run.path / name)
        except DamagedError as error:
            logger.warning("outer step %d cannot be gone on from: %s", number - 1, error)
        else:
            return number
    return 0


def beyond(run: Run, commits: Sequence[Commit]) -> list[Path]:
    """What a run has of later outer steps than these: manifests, tables, checkpoints, middles."""
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
    """Take out what is younger than the last of these commits; shards of it are removed.

    Manifests go first, the youngest before the others: after a kill anywhere, what is left has no
    gap, and what belongs to no manifest any more is removed or taken out by the next try.
    """
    paths = beyond(run, commits)
    manifests = [path for path in paths if path.parent.name == "manifests"]
    put_aside(run, [*reversed(manifests), *(path for path in paths if path not in manifests)])
    for folder in (run.path / "shards").glob("step=*"):
        if folder.name >= step_folder(len(commits)):
            remove_folder(folder)
    (run.path / "status.json").unlink(missing_ok=True)


def put_aside(run: Run, paths: Iterable[Path]) -> None:
    """Move files and folders of a run to the same place below RUN/damaged; nothing is replaced."""
    for path in paths:
        place = run.path / "damaged" / path.relative_to(run.path)
        number = 0
        while place.exists():
            number += 1
            place = place.with_name(f"{path.name}.{number}")
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
