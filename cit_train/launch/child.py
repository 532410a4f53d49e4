"""The process that does a job's work: its log, its signals, and no life after its parent."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1
_TAIL_BYTES = 16_384


class Child:
    """A child process that can be asked and waited for from within a signal handler.

    `subprocess` guards its waiting with a lock; a handler that interrupts a wait and waits itself
    would stand still for ever. So the state is read with `waitid`, which leaves the child as it is.

    Attributes:
        log: File that its two streams are appended to.
        is_asked: Whether it was told to stop.
    """

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: str, log: Path
    ) -> None:
        self.log, self.is_asked = log, False
        with log.open("ab") as stream:
            self._log_start = stream.tell()
            # Nothing else runs in this process, so that there is no lock that the fork could copy.
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                preexec_fn=_asker(),
            )

    def code(self) -> int | None:
        """Its exit code, the negative number of the signal that ended it, or None = it runs."""
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait(self, seconds: float | None = None) -> int | None:
        """Its code, once it has ended; None when that takes longer than `seconds`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (code := self.code()) is None:
            if deadline is not None and time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)
        return code

    def ask(self) -> None:
        """Ask it to stop, once: it takes a second request as an order to end at once."""
        if not self.is_asked and self.code() is None:
            self.is_asked = True
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        if self.code() is None:
            os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it: one that still runs is asked to stop."""
        self.ask()
        self._process.poll()

    def tail(self, num_lines: int = 20) -> str:
        """The last lines that it wrote."""
        with self.log.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(self._log_start, end - _TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-num_lines:])


def die_with_parent() -> None:
    """Have the kernel ask this process to stop when its parent is gone (Linux)."""
    _asker()()


def _asker() -> Callable[[], object]:
    """`prctl(PR_SET_PDEATHSIG, SIGTERM)`, looked up before the fork that it is called after."""
    if sys.platform != "linux":
        return lambda: None
    return partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
