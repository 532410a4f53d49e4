"""The guard that all tests run under: it is on, and it sees every way out."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

FAR = ("192.0.2.1", 9)  # an address for documentation: nobody has it


def udp(send: Callable[[socket.socket], object]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outlet:
        send(outlet)


@pytest.mark.faults("X4")
@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection(FAR, timeout=1),
        lambda: socket.getaddrinfo("example.org", 443),
        lambda: socket.gethostbyname("example.org"),
        lambda: udp(lambda outlet: outlet.connect_ex(FAR)),
        lambda: udp(lambda outlet: outlet.sendto(b"x", FAR)),
        lambda: udp(lambda outlet: outlet.sendmsg([b"x"], [], 0, FAR)),
    ],
)
def test_no_test_reaches_another_machine(
    reach: Callable[[], object], network_attempts: list[str]
) -> None:
    with pytest.raises(AssertionError, match="a test tried to reach"):
        reach()
    assert len(network_attempts) == 1
    network_attempts.clear()


@pytest.mark.faults("X4")
def test_an_attempt_that_a_thread_swallows_is_remembered(network_attempts: list[str]) -> None:
    def swallow() -> None:
        with pytest.raises(AssertionError):
            socket.create_connection(FAR, timeout=1)

    thread = threading.Thread(target=swallow)
    thread.start()
    thread.join()
    assert network_attempts == ["socket.getaddrinfo 192.0.2.1"]
    network_attempts.clear()


@pytest.mark.faults("X4")
def test_this_machine_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


@pytest.mark.faults("X4")
def test_a_process_that_a_test_starts_reaches_nobody_and_is_remembered() -> None:
    code = "import socket; socket.getaddrinfo('example.org', 443)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "a test tried to reach example.org" in ended.stderr
    log = Path(os.environ["CIT_NETWORK_ATTEMPTS"])
    assert log.read_text().startswith("socket.getaddrinfo example.org by ")
    log.write_text("")
