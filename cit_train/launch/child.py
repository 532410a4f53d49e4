"""The child process that does a job's work: its log, its signals, its end with its parent."""

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
    """A child process that a signal handler can stop and wait for.

    `subprocess` holds a lock while it waits, so a handler that interrupts a wait and waits itself
    would deadlock. Therefore the state is read with `waitid`, which does not reap the child.

    Attributes:
        log: The file that stdout and stderr are appended to.
        is_stop_requested: Whether it was asked to stop.
    """

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: str, log: Path
    ) -> None:
        self.log, self.is_stop_requested = log, False
        with log.open("ab") as file:
            self._log_start = file.tell()
            # This process has no other thread, so the fork cannot copy a locked lock.
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=_death_signal_setter(),
            )

    def code(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None = running."""
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait(self, seconds: float | None = None) -> int | None:
        """The code, once the child has ended; None = still running after `seconds`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (code := self.code()) is None:
            if deadline is not None and time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)
        return code

    def request_stop(self) -> None:
        """Send TERM, only once: a second TERM would make the command end at once."""
        if not self.is_stop_requested and self.code() is None:
            self.is_stop_requested = True
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the child."""
        if self.code() is None:
            os.kill(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Release the child; if it still runs, it is asked to stop."""
        self.request_stop()
        self._process.poll()

    def tail(self, num_lines: int = 20) -> str:
        """The last lines of the child's output."""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-num_lines:])


def die_with_parent() -> None:
    """Have the kernel send TERM to this process when its parent dies (Linux)."""
    _death_signal_setter()()


def _death_signal_setter() -> Callable[[], object]:
    """`prctl(PR_SET_PDEATHSIG, SIGTERM)` as a function, loaded before the fork."""
    if sys.platform != "linux":
        return lambda: None
    return partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
