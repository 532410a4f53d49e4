"""Processes that start in milliseconds: forked from a server that has imported PyTorch and `cit`.

A new Python spends seconds on imports before `cit` does anything, so tests that need a process, to
be killed or for its exit code and its streams, take one from here. Tests of what Python reads when
it starts (its hash seed, the number of threads), or of what `cit` imports, start one of their own.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
# Where the functions are that tests run in processes of their own.
FOLDERS = (ROOT, ROOT / "tests" / "cit_train", ROOT / "tests" / "cit_curate")
# What commands about files import: a second. Not tyro, which reads when it is imported whether a
# terminal gets colours, as its environment says.
OF_FILES = ("cit_train.cli", "cit_curate.pool.pool", "cit_curate.run.ledger", "rich.table")
# What a training and a curation import, most of it when they first need it: several seconds.
OF_MODELS = (
    *("jobs", "train_tiny", "cit_train.outer_loop", "indexes.faiss_index", "pyarrow.dataset"),
    *("webdataset", "pandas"),
)


class Forked:
    """A process from the server. Its methods and attributes are those of `subprocess.Popen`.

    Attributes:
        pid: Its number.
        returncode: How it ended, a negative signal for a kill; None while it runs.
        stdout: What it writes, if it was started with PIPE.
        stderr: Likewise.
    """

    def __init__(self, server: socket.socket, pipes: Mapping[str, IO[Any]]) -> None:
        self._server = server
        weakref.finalize(self, server.close)  # where a test does not wait for it
        self._lock = threading.Lock()
        self._received = b""
        self.returncode: int | None = None
        self.stdout, self.stderr = pipes.get("stdout"), pipes.get("stderr")
        self._server.settimeout(120)
        self.pid = self._number()

    def _number(self) -> int:
        """The next line from the server."""
        while b"\n" not in self._received:
            received = self._server.recv(64)
            assert received, "the fork server has ended"
            self._received += received
        line, self._received = self._received.split(b"\n", 1)
        return int(line)

    def wait(self, timeout: float | None = None) -> int:
        """How it ended.

        Raises:
            subprocess.TimeoutExpired: It has not, within so many seconds.
        """
        with self._lock:
            if self.returncode is None:
                self._server.settimeout(timeout)
                try:
                    self.returncode = self._number()
                except (TimeoutError, BlockingIOError):
                    assert timeout is not None
                    raise subprocess.TimeoutExpired(str(self.pid), timeout) from None
                self._server.close()
            return self.returncode

    def poll(self) -> int | None:
        """How it ended; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """All that it writes until it ends, on stdout and stderr."""
        read: dict[str, Any] = {"stdout": None, "stderr": None}

        def drain(name: str, pipe: IO[Any]) -> None:
            with pipe:
                read[name] = pipe.read()

        pipes = [("stdout", self.stdout), ("stderr", self.stderr)]
        threads = [threading.Thread(target=drain, args=pair) for pair in pipes if pair[1]]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join()
        return read["stdout"], read["stderr"]

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()


def start(
    target: str,
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    new_session: bool = False,
    imported: tuple[str, ...] = OF_MODELS,
) -> Forked:
    """Run a function without arguments in a process of its own.

    Args:
        target: `module:function`.
        arguments: What follows the name of the command in its sys.argv.
        cwd: Its folder; None = that of this process.
        environment: Changes of the environment of this process.
        stdout: As of `subprocess.Popen`; a PIPE is read as text.
        stderr: Likewise.
        new_session: Whether it gets a session, and with it a process group, of its own.
        imported: The modules that it finds imported: OF_MODELS or OF_FILES, each a server.
    """
    module, function = target.split(":")
    request = {
        "module": module,
        "function": function,
        "arguments": [*map(str, arguments)],
        "cwd": str(cwd or Path.cwd()),
        "environment": {**os.environ, **(environment or {})},
        "new_session": new_session,
    }
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as opened, theirs:
        null = opened.enter_context(Path(os.devnull).open("r+b"))
        pipes: dict[str, IO[Any]] = {}
        descriptors = [null.fileno()]
        for number, name, to in ((1, "stdout", stdout), (2, "stderr", stderr)):
            if to == subprocess.PIPE:
                reader, writer = os.pipe()
                opened.callback(os.close, writer)
                pipes[name] = os.fdopen(reader, encoding="utf-8")
                descriptors.append(writer)
            elif to == subprocess.DEVNULL:
                descriptors.append(null.fileno())
            elif to == subprocess.STDOUT:
                descriptors.append(descriptors[1])
            elif to is None:
                descriptors.append(number)
            else:
                descriptors.append(to if isinstance(to, int) else to.fileno())
        message = json.dumps(request).encode()
        socket.send_fds(_server(imported)[1], [message], [*descriptors, theirs.fileno()])
    return Forked(ours, pipes)


def run(target: str, *arguments: object, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """As `start`, to its end, with its streams captured as text unless they are given."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(target, *arguments, **{**streams, **options})
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess([target, *map(str, arguments)], process.returncode, out, err)


@cache
def _server(modules: tuple[str, ...]) -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """A server of this process, which ends with it, and the socket to ask it by."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    paths = [*map(str, FOLDERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), *modules],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "CIT_FORK_REQUESTS": str(theirs.fileno()),
            },
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the tests is not for what they have started
        )
    atexit.register(_stop, process, ours)
    return process, ours


def _stop(process: "subprocess.Popen[bytes]", requests: socket.socket) -> None:
    requests.close()
    process.wait()
