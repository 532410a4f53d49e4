"""Stop signals: the first is honoured where nothing is lost, the second at once."""

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
# A launcher, a scheduler and a terminal may each pass on the same request; a signal later than this
# after the first one is a second request.
SAME_REQUEST_SECONDS = 0.5


class StoppedError(CitError):
    """The run was stopped on request; its state is on disk, and it can be resumed."""

    exit_code = STOPPED


class EndedBySignal(SystemExit):
    """A second signal ended the run at once; the exit code is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        """The message, with the next step."""
        return _ended_by(self.number)


class StopSignals:
    """Turns the first signal into a request that the run polls, and the second into an exit.

    Attributes:
        requested: The name of the signal that requested the stop; None before.
        relayed: The name of a signal that another rank received and passed on, until this rank
            receives it itself.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.relayed: str | None = None
        self._since = 0.0
        self._interrupting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Install the handlers; outside the main thread, where Python allows none, do nothing."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_over(self, names: Sequence[str | None]) -> None:
        """Adopt the signal of the first rank that received one."""
        self.requested = next(name for name in names if name is not None)

    def ignore(self) -> None:
        """Ignore further signals: the request is met, and only the exit is left."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A block that a stop request ends with a StoppedError; for waiting, not for writing.

        Raises:
            StoppedError: A stop was requested before or during the block.
        """
        self._interrupting = True
        try:
            if self.requested is not None:
                raise StoppedError(f"{self.requested} requested a stop")
            yield
        finally:
            self._interrupting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested is None:
            self.requested, self._since = self.relayed or name, time.monotonic()
            if self._interrupting:
                raise StoppedError(f"{name} requested a stop")
        elif self.relayed is not None:
            self.relayed, self._since = None, time.monotonic()
        elif time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            if number == signal.SIGINT:
                raise KeyboardInterrupt(_ended_by(number))
            raise EndedBySignal(number)


def _ended_by(number: int) -> str:
    name = signal.Signals(number).name
    return (
        f"ended at once by a second signal, {name}, without saving: resume from the last save with "
        "the same command and --resume"
    )
