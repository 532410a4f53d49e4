"""One writer at a time: nobody waits, the owner is named, and a dead one holds nothing."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cit_curate.errors import ResourceError
from cit_curate.storage.lock import (
    lock_path,
    may_have_writer,
    waiting_lock,
    writer_lock,
    writer_of,
)

HOLD = """
import sys
from pathlib import Path
from cit_curate.storage.lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
# So many turns of adding one to a number that a file has; a turn that is refused is taken again.
COUNT = """
import sys
from pathlib import Path
from cit_curate.errors import ResourceError
from cit_curate.storage.lock import writer_lock
path, turns = Path(sys.argv[1]), int(sys.argv[2])
while turns:
    try:
        with writer_lock(path):
            path.write_text(str(int(path.read_text()) + 1))
            turns -= 1
    except ResourceError:
        pass
"""


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock; it is killed when the block ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_writer_is_refused_and_the_first_one_named(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run"
    with (
        writer(path) as first,
        pytest.raises(ResourceError, match=f"process {first.pid} on {socket.gethostname()}; wait"),
        writer_lock(path),
    ):
        raise AssertionError
    with writer_lock(path), pytest.raises(ResourceError), writer_lock(path):
        raise AssertionError


def test_a_lock_is_gone_with_its_block_and_dies_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with writer(path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == [".run.lock"]
    assert writer_of(path) is None
    with writer_lock(path):
        assert writer_of(path) == f"process {os.getpid()} on {socket.gethostname()}"
    assert not lock_path(path).exists()


def test_asking_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert writer_of(path) is None
    assert not may_have_writer(path)
    assert list(tmp_path.iterdir()) == []
    lock_path(path).touch(0o444)
    before = lock_path(path).stat()
    assert writer_of(path) is None
    assert lock_path(path).stat() == before
    with writer(tmp_path / "other"):
        assert may_have_writer(tmp_path / "other")


@pytest.mark.parametrize("content", ["", "{", "1", "{}", '{"pid": 1'])
def test_a_lock_that_names_nobody_counts_while_it_is_held(content: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with writer_lock(path):
        lock_path(path).write_text(content)
        assert writer_of(path) == "another process that is just starting"
        assert may_have_writer(path)
    lock_path(path).write_text(content)
    assert writer_of(path) is None
    assert not may_have_writer(path)


def test_a_lock_of_another_machine_may_be_held(tmp_path: Path) -> None:
    path = tmp_path / "run"
    lock_path(path).write_text(json.dumps({"pid": 1, "host": "another"}))
    assert may_have_writer(path)
    assert writer_of(path) is None


@pytest.mark.slow
def test_of_many_writers_one_at_a_time_writes(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("0")
    command = [sys.executable, "-c", COUNT, str(path), "300"]
    writers = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait() for process in writers] == [0] * 4
    assert path.read_text() == "1200"
    assert list(tmp_path.iterdir()) == [path]


def test_a_waiting_lock_waits_and_stays(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "a"
    order: list[str] = []

    def second() -> None:
        with waiting_lock(lock):
            order.append("second")

    thread = threading.Thread(target=second)
    with waiting_lock(lock):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert lock.exists()
