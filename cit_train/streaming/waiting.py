"""Waiting for another part of the run: logged after some seconds, an error after a limit."""

import logging
import time

from cit_curate.errors import PeerLostError

WARN_AFTER_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Waiting:
    """One wait of training for the writer of shards."""

    def __init__(self, what: str, limit_seconds: float) -> None:
        """Begin to wait.

        Args:
            what: The awaited thing, as it is shown to people.
            limit_seconds: The longest wait without progress, `--stream-seconds`.
        """
        self._what, self._limit_seconds = what, limit_seconds
        self._has_warned = False
        self.restart()

    def restart(self) -> None:
        """Restart the clock, since there was progress."""
        self._started = time.monotonic()

    def check(self) -> None:
        """Log one warning when the wait is long.

        Raises:
            PeerLostError: The wait is longer than the limit.
        """
        waited = time.monotonic() - self._started
        if waited > WARN_AFTER_SECONDS and not self._has_warned:
            logger.warning("training waits for %s", self._what)
            self._has_warned = True
        if waited > self._limit_seconds:
            raise PeerLostError(
                f"no {self._what} after {waited:.0f} s; raise --stream-seconds if the images are "
                "slow to read, and continue with --resume"
            )
