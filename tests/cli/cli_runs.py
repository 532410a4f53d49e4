"""Running `cit`, in this process or in one of its own, and the flags that most commands need."""

import contextlib
import logging
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import forked
import pytest
from forked import Forked

from cit_train import cli


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Cit = Callable[..., Ended]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cit:
    """What runs `cit` in this process, whole: from sys.argv to the exit code."""

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cit", *map(str, args)])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            logging.captureWarnings(False)
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, *capsys.readouterr())

    monkeypatch.setenv("COLUMNS", "120")
    return run


CIT = "cit_train.cli:main"
OF_MODELS = ("train", "curate", "eval", "predict")


def imports_of(*args: object) -> tuple[str, ...]:
    """The modules that a command needs, for the process that it is forked from."""
    needs_models = args[0] in OF_MODELS and args[-1] != "--help"
    return forked.OF_MODELS if needs_models else forked.OF_FILES


def start(*args: object, cwd: Path | None = None, **settings: str) -> Forked:
    """Starts `cit` in a process of its own, which is forked."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    imported = imports_of(*args)
    return forked.start(CIT, *args, cwd=cwd, environment=settings, imported=imported, **pipes)


def start_fresh(*args: object, cwd: Path | None = None, **settings: str) -> "subprocess.Popen[str]":
    """Starts `cit` in a new Python, which reads its own settings only when it starts."""
    return subprocess.Popen(
        [sys.executable, "-m", "cit_train.cli", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **settings},
    )


@contextmanager
def on_terminal(*args: object) -> Iterator[tuple[Forked, Iterator[str]]]:
    """`cit` with a terminal of 20 columns as its stderr, and what it shows there."""
    ours, theirs = pty.openpty()
    settings = {"COLUMNS": "20", "TERM": "xterm", "NO_COLOR": "1"}
    streams = {"stdout": subprocess.DEVNULL, "stderr": theirs}
    process = forked.start(CIT, *args, environment=settings, imported=imports_of(*args), **streams)
    os.close(theirs)

    def shown() -> Iterator[str]:
        while select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                return
            yield piece.decode(errors="replace")

    try:
        yield process, shown()
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def on_narrow_terminal(*args: object, **settings: str) -> tuple[int, str]:
    """How `cit` ends, and all that it shows, on a terminal of 20 columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 20))
    # A new Python: tyro decides on colours when it is imported.
    process = subprocess.Popen(
        [sys.executable, "-m", "cit_train.cli", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **settings},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux: the other end is closed
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    return process.wait(timeout=60), shown.decode().replace("\r\n", "\n")


def wait_for(path: Path, process: Forked) -> None:
    """Until a running command has made a file."""
    limit = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, f"{path} was not made in 60 s"
        time.sleep(0.02)


def png_with_header(width: int, height: int) -> bytes:
    """A PNG of some 80 bytes whose header says what one likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def text_flags(tiny: Path) -> list[object]:
    return ["--metadata", tiny / "classes.txt", "--text-encoder", tiny / "text"]


def train_flags(tiny: Path, pool: str = "data/pool") -> list[object]:
    return [
        *text_flags(tiny),
        *("--pool", tiny / pool, "--vision-encoder", tiny / "vision", "--projection-dim", "8"),
        *("--batch-size", "4", "--curate-every", "1", "--max-updates", "2", "--threshold", "-1"),
    ]
