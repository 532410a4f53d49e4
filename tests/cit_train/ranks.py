"""Starts tiny trainings on some ranks of this machine, through torchrun, with planted faults."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 120


def start(
    num_ranks: int,
    world: Path,
    out: Path,
    fields: Mapping[str, Any],
    faults: Sequence[Mapping[str, Any]] = (),
) -> subprocess.Popen[str]:
    """`train_tiny.py`, which resumes what is there; without torchrun on one rank."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    torchrun += ["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2"]
    script = [str(HERE / "train_tiny.py"), str(world), str(out), json.dumps(fields)]
    command = [sys.executable, *(torchrun if num_ranks > 1 else []), *script, json.dumps(faults)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said; a process that hangs fails the test."""
    try:
        _, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


def alive(out: Path) -> list[int]:
    """Processes that train this run."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in arguments:
            found.append(int(folder.name))
    return found


def wait_until_gone(out: Path, *, seconds: float) -> None:
    """No process of the run is left, soon; those that are, are killed."""
    limit = time.monotonic() + seconds
    while left := alive(out):
        if time.monotonic() > limit:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes {left} still train {out} after {seconds} s")
        time.sleep(0.1)
