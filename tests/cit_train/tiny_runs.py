"""Runs of the tiny world: started in processes of their own, and compared with each other."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import forked
import torch
from forked import Forked
from safetensors.torch import load_file

from cit_curate.run.ledger import Run
from cit_curate.storage.durable import read_json

TRAIN_TINY = Path(__file__).parent / "train_tiny.py"
LEDGER = ("selections", "near_misses", "rounds", "used", "rejects", "manifests")


def ledger_hashes(run: Path) -> dict[str, str]:
    """SHA-256 of every ledger file, by its path in the run."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in LEDGER
        for path in sorted((run / table).rglob("*.*"))
        if path.is_file()
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The model of the last checkpoint."""
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Ledger bytes and weights are equal, and no update was made or logged twice."""
    assert ledger_hashes(one)
    assert ledger_hashes(one) == ledger_hashes(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert logged_updates(one) == logged_updates(other)
    assert not list(other.rglob(".tmp-*"))


def assert_close_runs(one: Run, other: Run) -> None:
    """The same pairs for the same reasons, and weights up to the order that floats are added in."""
    names = ["outer_step", "lane", "pair_key", "reason", "scan_position"]
    order = [(name, "ascending") for name in names[:2] + names[4:]]
    for table, columns in (("selections", names), ("rejects", names)):
        first, second = (run.read(table).select(columns).sort_by(order) for run in (one, other))
        assert len(first) or table == "rejects"
        assert first.equals(second), table
    assert one.counts() == other.counts()
    first, second = weights(one.path), weights(other.path)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-5, rtol=0)


def logged_updates(run: Path) -> list[tuple[str, int]]:
    """Kind and update of the lines of updates and evaluations, in their order."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["update"]) for row in rows if row["kind"] in ("train", "eval")]


def status(run: Path) -> dict[str, Any]:
    """What the last try left in RUN/status.json."""
    value: dict[str, Any] = read_json(run / "status.json")
    return value


def start_training(
    world: Path,
    out: Path,
    *,
    faults: Sequence[Mapping[str, object]] = (),
    **fields: object,
) -> Forked:
    """`train` in a process of its own, which resumes what is there."""
    arguments = [str(world), str(out), json.dumps(fields), json.dumps(list(faults))]
    with told_by(out).open("ab") as stderr:
        # A signal to its process group is not for the tests.
        return forked.start("train_tiny:main", *arguments, stderr=stderr, new_session=True)


def start_fresh(
    world: Path,
    out: Path,
    *,
    ranks: int = 1,
    faults: Sequence[Mapping[str, object]] = (),
    hash_seed: str = "0",
    **fields: object,
) -> subprocess.Popen[bytes]:
    """As `start_training` by a new Python, which takes seconds, or by torchrun."""
    command = [*launcher(ranks), str(TRAIN_TINY), str(world), str(out)]
    return start(
        [*command, json.dumps(fields), json.dumps(list(faults))], out, PYTHONHASHSEED=hash_seed
    )


def launcher(ranks: int) -> list[str]:
    """The command that a script is given to, to be run as so many ranks."""
    if ranks == 1:
        return [sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc-per-node={ranks}"]


def start(command: Sequence[str], out: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A process of its own; what it says goes to a file beside `out`."""
    fixed = {"HF_HUB_OFFLINE": "1"}
    with told_by(out).open("ab") as stderr:
        return subprocess.Popen(
            command,
            stderr=stderr,
            env={**os.environ, **fixed, **environment},
            start_new_session=True,  # a signal to its process group is not for the tests
        )


def told_by(out: Path) -> Path:
    """Where the stderr of the tries of a run is."""
    return out.with_name(f"{out.name}.stderr")


def wait_for(done: Callable[[], object], *, seconds: float) -> None:
    """Wait until `done` gives something true."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def processes_of(out: Path) -> list[int]:
    """The processes that write to the file beside the run: its tries, and what they started."""
    found, told = [], told_by(out).resolve()
    for path in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            if path.readlink() == told:
                found.append(int(path.parents[1].name))
    return sorted(found)


def start_ranks(
    world: Path,
    out: Path,
    *,
    ranks: int,
    faults: Sequence[Mapping[str, object]] = (),
    fields_of: Mapping[int, Mapping[str, object]] | None = None,
    folder_of: Mapping[int, Path] | None = None,
    absent: Sequence[int] = (),
    **fields: object,
) -> list[Forked]:
    """The ranks of a run as a cluster starts them: no launcher, and rank 0 has the store.

    Args:
        world: The tiny world.
        out: The run, which is resumed.
        ranks: How many.
        faults: See faults.py.
        fields_of: Fields that single ranks see.
        folder_of: Where single ranks work, and relative paths of theirs start.
        absent: Ranks that do not come.
        fields: Of the config.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    started: list[Forked] = []
    for rank in sorted(set(range(ranks)) - set(absent)):
        own = {**fields, **(fields_of or {}).get(rank, {})}
        environment = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        arguments = [str(world), str(out), json.dumps(own), json.dumps(list(faults))]
        with told_by(out).open("ab") as stderr:
            started.append(
                forked.start(
                    "train_tiny:main",
                    *arguments,
                    cwd=(folder_of or {}).get(rank),
                    environment=environment,
                    stderr=stderr,
                )
            )
    return started


def finish_ranks(started: Sequence[Forked], *, seconds: float = 90) -> list[int | None]:
    """The exit codes by rank, once all have ended; None for one that has not within the time."""
    deadline = time.monotonic() + seconds
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    codes = [process.returncode for process in started]
    for process in started:
        process.kill()
        process.wait()
    return codes


def finish(process: subprocess.Popen[bytes] | Forked, *, seconds: float = 90) -> int:
    """Exit code of a process that ends within so many seconds."""
    try:
        return process.wait(timeout=seconds)
    finally:
        process.kill()
        process.wait()
