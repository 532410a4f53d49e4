"""Nothing that a test starts leaves this machine: Python imports this file when it begins.

`conftest.py` puts this folder into PYTHONPATH, so that commands, ranks and workers are guarded as
the tests themselves are.
"""

import os
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any

# Where processes tell what they tried; the test that started them fails.
LOG = "CIT_NETWORK_ATTEMPTS"


class NetworkGuard:
    """An audit hook of Python: nothing that this process sends or looks up leaves the machine.

    Code may swallow what is raised, so each attempt is remembered too.
    """

    def __init__(self, log: str = "") -> None:
        self.attempts: list[str] = []
        self._log = log
        self._own = {None, "", socket.gethostname(), "localhost", "127.0.0.1", "::1", "0.0.0.0"}

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]  # of a Unix socket it is a path; connected sockets have none
            host = address[0] if isinstance(address, tuple) else None
        elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = arguments[0]
        else:
            return
        host = host.decode() if isinstance(host, bytes) else host
        if host not in self._own:
            self.attempts.append(f"{event} {host}")
            if self._log:
                with Path(self._log).open("a") as stream:
                    stream.write(f"{event} {host} by {' '.join(sys.orig_argv)}\n")
            raise AssertionError(f"a test tried to reach {host} ({event})")


@cache
def network_guard(log: str = "") -> NetworkGuard:
    """The guard of this process, which cannot be taken off again."""
    guard = NetworkGuard(log)
    sys.addaudithook(guard)
    return guard


# Ray's own processes know each other by the machine's address, and ask a cloud what it is.
_IS_RAYS = any(f"{os.sep}ray{os.sep}" in word for word in sys.orig_argv)

if LOG in os.environ and not _IS_RAYS:
    network_guard(os.environ[LOG])
