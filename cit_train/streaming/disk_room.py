"""Room for shards on a full disk: those that were trained on go, then it is waited for."""

import logging
import math
import time
from pathlib import Path

from cit_curate.run.paths import step_folder
from cit_curate.storage.durable import remove_folder

# Training goes on meanwhile with the shards that are there.
WAIT_SECONDS = 60.0
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


class DiskRoom:
    """What a writer of shards asks for room when the disk is full."""

    def __init__(self, shards: Path, outer_step: int, *, removes: bool) -> None:
        """Ask for nothing yet.

        Args:
            shards: The run's folder of shards.
            outer_step: That is written.
            removes: Whether shards of earlier outer steps may be removed.
        """
        self._shards = shards
        # Not the last one's, into which whoever reads batches looks once more, for its end.
        self._keeps_from = step_folder(outer_step - 1)
        self._removes = removes
        self._began = self._asked = -math.inf

    def __call__(self) -> bool:
        """Whether to try again: something was removed, or may have been meanwhile."""
        folders = [each for each in self._shards.glob("step=*") if each.name < self._keeps_from]
        if self._removes and folders:
            for folder in folders:
                logger.warning("the disk is full: removing %s, which was trained on", folder)
                remove_folder(folder)
            return True
        now = time.monotonic()
        if now - self._asked > WAIT_SECONDS:  # it was not full meanwhile
            self._began = now
            logger.warning(
                "the disk is full: waiting %.0f s for room below %s; free some space",
                WAIT_SECONDS,
                self._shards,
            )
        self._asked = now
        if now - self._began >= WAIT_SECONDS:
            return False
        time.sleep(POLL_SECONDS)
        return True
