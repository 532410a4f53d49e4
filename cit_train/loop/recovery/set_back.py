"""Setting a run back to an earlier outer step; what is taken out is kept in RUN/damaged."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from cit_curate.errors import DamagedError
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import LEDGER_TABLES
from cit_curate.run.paths import step_folder
from cit_curate.storage.durable import remove_folder
from cit_train.loop.recovery.checkpoint import check_checkpoint
from cit_train.loop.recovery.find import needed_checkpoints

logger = logging.getLogger(__name__)


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


def set_back(run: Run, commits: Sequence[Commit]) -> None:
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
