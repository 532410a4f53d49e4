"""What a command costs: its time, and the memory of its process and of all below it."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Spent:
    """The cost of one command.

    Attributes:
        wall: Seconds.
        cpu: Processor seconds of it and of the processes that it waited for.
        parent: MB of its process that were in RAM at most.
        child: The same of the largest process below it; 0 = there was none.
        tree: MB of all of them that were in RAM at one time, with shared pages counted once.
        killed: Whether it was killed on purpose.
    """

    wall: float
    cpu: float
    parent: float
    child: float
    tree: float
    killed: bool = False


def spent_by(command: Sequence[str], log: Path, *, kill_after: float | None = None) -> Spent:
    """Run a command.

    Args:
        command: The command.
        log: The file for what it prints.
        kill_after: Seconds after which it and all below it are killed (SIGKILL); None = never.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    started = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        with _Memory(process.pid) as memory:
            killer = threading.Timer(kill_after or 0, os.killpg, (process.pid, signal.SIGKILL))
            if kill_after is not None:
                killer.start()
            _, status, usage = os.wait4(process.pid, 0)
            killer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    was_killed = kill_after is not None and process.returncode == -signal.SIGKILL
    if process.returncode and not was_killed:
        raise subprocess.CalledProcessError(process.returncode, command, log.read_bytes())
    spent = memory.spent
    return replace(
        spent,
        wall=time.perf_counter() - started,
        cpu=usage.ru_utime + usage.ru_stime,
        killed=was_killed,
    )


class _Memory:
    """The memory of a process and of those below it, looked at again and again in a thread."""

    def __init__(self, root: int) -> None:
        self.spent = Spent(0, 0, 0, 0, 0)
        self._root, self._known = root, {root}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            # Children come after their parents, so one round finds nearly all new ones.
            pids = sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
            peaks = {
                pid: _number(pid, "status", "VmHWM") / 1024 for pid in pids if self._is_ours(pid)
            }
            tree = sum(_number(pid, "smaps_rollup", "Pss") / 1024 for pid in peaks)
            own = peaks.pop(self._root, 0.0)
            self.spent = replace(
                self.spent,
                parent=max(self.spent.parent, own),
                child=max(self.spent.child, *peaks.values(), 0.0),
                tree=max(self.spent.tree, tree),
            )

    def _is_ours(self, pid: int) -> bool:
        if pid not in self._known and _number(pid, "status", "PPid") in self._known:
            self._known.add(pid)
        return pid in self._known


def _number(pid: int, file: str, name: str) -> int:
    """A number in a file of a process, memory in kB; 0 = it has ended, or has no such line."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
