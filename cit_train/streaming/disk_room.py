"""Room for shards on a full disk: shards already trained on are removed, else the writer waits."""

import logging
import math
import time
from pathlib import Path

from cit_curate.run.paths import step_folder
from cit_curate.storage.durable import remove_folder

# Meanwhile training continues with the existing shards.
WAIT_SECONDS = 60.0
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


class DiskRoom:
    """Makes room on a full disk, by removing old shards or by waiting."""

    def __init__(self, shards: Path, outer_step: int, *, removes: bool) -> None:
        """Set up for one outer step.

        Args:
            shards: The run's folder of shards.
            outer_step: The outer step being written.
            removes: Whether shards of earlier outer steps may be removed.
        """
        self._shards = shards
        # The previous outer step stays: a batch reader looks once more for its end.
        self._keeps_from = step_folder(outer_step - 1)
        self._removes = removes
        self._waiting_since = self._last_call = -math.inf

    def __call__(self) -> bool:
        """Whether to try again, since something was removed or may have been in the meantime."""
        folders = [path for path in self._shards.glob("step=*") if path.name < self._keeps_from]
        if self._removes and folders:
            for folder in folders:
                logger.warning("the disk is full: removing %s, which was trained on", folder)
                remove_folder(folder)
            return True
        now = time.monotonic()
        if now - self._last_call > WAIT_SECONDS:  # there was room in between
            self._waiting_since = now
            logger.warning(
                "the disk is full: waiting %.0f s for room below %s; free some space",
                WAIT_SECONDS,
                self._shards,
            )
        self._last_call = now
        if now - self._waiting_since >= WAIT_SECONDS:
            return False
        time.sleep(POLL_SECONDS)
        return True
