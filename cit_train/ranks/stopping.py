"""Signals that ask a run to stop: noticed where nothing is lost, and at once when they insist."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from cit_curate.errors import CitError
from cit_train.ranks.status import STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
# A launcher, a scheduler and a terminal may each pass on the same request; what follows the first
# one later than this is a second request.
SAME_REQUEST_SECONDS = 0.5


class StoppedError(CitError):
    """The run was asked to stop; what it has is on disk, and it can be taken up again."""

    exit_code = STOPPED


class EndedBySignal(SystemExit):
    """A second signal has ended the run where it was; the code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        """What happened and what to do."""
        return _ended_by(self.number)


class StopSignals:
    """Turns the first signal into a wish that the run looks at, and the second into an end.

    Attributes:
        requested: Name of the signal that asked for the stop; None before.
        relayed: Name of the signal that another rank has heard and passed on, until it comes to
            this one by itself, too.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.relayed: str | None = None
        self._since = 0.0
        self._interrupting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Listen; in a thread that is not the main one Python gives no signals, so nobody does."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_over(self, names: Sequence[str | None]) -> None:
        """Take the signal that the first of the ranks has heard for the one that asked."""
        self.requested = next(name for name in names if name is not None)

    def ignore(self) -> None:
        """Hear nothing more: what was asked for is done, and only its end is left."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within it a request ends what is done with a StoppedError: for waiting, not for writing.

        Raises:
            StoppedError: A stop is or was asked for.
        """
        self._interrupting = True
        try:
            if self.requested is not None:
                raise StoppedError(f"{self.requested} asked to stop")
            yield
        finally:
            self._interrupting = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested is None:
            self.requested, self._since = self.relayed or name, time.monotonic()
            if self._interrupting:
                raise StoppedError(f"{name} asked to stop")
        elif self.relayed is not None:
            self.relayed, self._since = None, time.monotonic()
        elif time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            if number == signal.SIGINT:
                raise KeyboardInterrupt(_ended_by(number))
            raise EndedBySignal(number)


def _ended_by(number: int) -> str:
    name = signal.Signals(number).name
    return (
        f"ended at once by a second signal, {name}, without saving: go on from what was saved "
        "before, with the same command and --resume"
    )
