"""Waiting for another part of the run: told after some seconds, and given up after a limit."""

import logging
import time

from cit_curate.errors import PeerLostError

TELL_AFTER_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Waiting:
    """One wait of training for a file of the shards' writer."""

    def __init__(self, what: str, limit_seconds: float) -> None:
        """Begin to wait.

        Args:
            what: Is waited for, as shown to people.
            limit_seconds: `--stream-seconds`.
        """
        self._what, self._limit_seconds = what, limit_seconds
        self._is_told = False
        self.again()

    def again(self) -> None:
        """Begin anew: there was progress."""
        self._started = time.monotonic()

    def check(self) -> None:
        """Say so once it takes long.

        Raises:
            PeerLostError: It takes longer than the limit.
        """
        waited = time.monotonic() - self._started
        if waited > TELL_AFTER_SECONDS and not self._is_told:
            logger.warning("training waits for %s", self._what)
            self._is_told = True
        if waited > self._limit_seconds:
            raise PeerLostError(
                f"no {self._what} after {waited:.0f} s; raise --stream-seconds if the images are "
                "slow to read, and go on with --resume"
            )
