"""A process that has all imports behind it, and forks others that run a function each.

`forked.py` starts it, with the names of the modules to import, and asks it for processes. What is
forked runs as if Python had just been started for it: with its own streams, environment, folder and
arguments, from the top of its stack, and with no lock or thread of the tests.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

# More than the environment and the arguments of any command that the tests start.
MAX_MESSAGE_BYTES = 2**20


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request, and report how it ended.

    Returns:
        In a forked process, what it is to run; None in this one, once nobody can ask any more.
    """
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in running:
                    pid, client = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _report(client, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    continue
                message, descriptors, _, _ = socket.recv_fds(requests, MAX_MESSAGE_BYTES, 4)
                if not message:
                    return None
                client = socket.socket(fileno=descriptors[3])
                pid = os.fork()
                if pid == 0:
                    for open_end in (requests, client, *(each for _, each in running.values())):
                        open_end.close()
                    for ended in running:
                        os.close(ended)
                    return {**json.loads(message), "streams": descriptors[:3]}
                for descriptor in descriptors[:3]:
                    os.close(descriptor)
                client.sendall(b"%d\n" % pid)
                ended = os.pidfd_open(pid)
                running[ended] = (pid, client)
                selector.register(ended, selectors.EVENT_READ)


def _report(client: socket.socket, code: int) -> None:
    with client, contextlib.suppress(BrokenPipeError):  # a test that did not wait for it
        client.sendall(b"%d\n" % code)


def become(request: dict[str, Any]) -> None:
    """Take the streams, the environment, the folder and the arguments of a request."""
    if request["new_session"]:
        os.setsid()
    for number, descriptor in enumerate(request["streams"]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    time.tzset()
    path = importlib.import_module(request["module"]).__file__
    assert path is not None
    sys.argv = sys.orig_argv = [path, *request["arguments"]]  # as of `python -m`
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        stream = os.fdopen(number, "w", errors=errors, closefd=False)
        is_prompt = number == 2 or stream.isatty()
        stream.reconfigure(line_buffering=is_prompt, write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def end(code: int) -> NoReturn:
    """End as Python does, without the seconds in which it takes every module apart."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code)


def main(modules: Sequence[str]) -> None:
    """Import the modules, serve, and run a request in each process that is forked."""
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # or a collection in each process would copy all of their memory
    request = serve(socket.socket(fileno=int(os.environ.pop("CIT_FORK_REQUESTS"))))
    if request is None:
        return
    become(request)
    code: object = 0
    try:
        getattr(importlib.import_module(request["module"]), request["function"])()
    except SystemExit as asked:
        code = asked.code or 0
    except BaseException:  # noqa: BLE001 - as Python itself
        traceback.print_exc()
        code = 1
    end(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
