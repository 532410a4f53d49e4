"""A training of very many outer steps: what it holds on to must not grow with them.

A few seconds in the slow set; the run that docs/reliability.md tells of took longer:

    pytest tests/cit_train/loop/test_soak.py -m slow -s --soak-minutes 20
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_runs import finish, start_training, told_by, wait_for

from cit_curate.run.ledger import Run
from cit_train.loop.recovery.find import find_damage

KEPT_STEPS = 4
SAMPLES = 40
# Of a second half over the half before it.
ALLOWED_GROWTH = 1.05


@dataclass(frozen=True)
class Sample:
    """The trainer and the processes below it, and its run folder, at one moment.

    Attributes:
        steps: Outer steps that are committed.
        mebibytes: Resident memory, of all processes.
        open_files: Open file descriptors, of all processes.
        processes: How many there are.
        shard_steps: Outer steps that still have shards.
        other_bytes: What is on the disk beside the ledger and its manifests, which do grow.
    """

    steps: int
    mebibytes: float
    open_files: int
    processes: int
    shard_steps: int
    other_bytes: int


def family(pid: int) -> list[Path]:
    """The folders in /proc of a process and of all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return [Path(f"/proc/{member}") for member in members]


def resident_mebibytes(process: Path) -> float:
    (line,) = (row for row in (process / "status").read_text().splitlines() if "VmRSS" in row)
    return int(line.split()[1]) / 1024


def bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # which minds no folder that goes meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(parent) / name).lstat().st_size
    return total


def sample(pid: int, out: Path) -> Sample:
    processes = family(pid)
    return Sample(
        steps=len(list((out / "manifests").iterdir())),
        mebibytes=sum(map(resident_mebibytes, processes)),
        open_files=sum(len(list((process / "fd").iterdir())) for process in processes),
        processes=len(processes),
        shard_steps=len(list((out / "shards").iterdir())),
        other_bytes=bytes_below(out / "shards") + bytes_below(out / "checkpoints"),
    )


def show(samples: Sequence[Sample], seconds: float) -> None:
    names = ["steps", "mebibytes", "open_files", "processes", "shard_steps", "other_bytes"]
    lines = [f"\n{seconds:.1f} s between two rows", " ".join(f"{name:>12}" for name in names)]
    for each in samples:
        lines.append(" ".join(f"{getattr(each, name):>12,.0f}" for name in names))
    sys.stdout.write("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.timeout(0)  # as long as it is asked for
def test_very_many_outer_steps_hold_on_to_nothing(
    world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds = 60 * request.config.getoption("--soak-minutes") / SAMPLES
    out = tmp_path / "run"
    process = start_training(
        world,
        out,
        curate_every=1,
        max_updates=10**6,
        eval_every=10**6,
        keep_shards=str(KEPT_STEPS),
        num_workers=1,
        min_ratio=1.0,
    )
    samples = []
    try:
        wait_for(lambda: len(list(out.glob("manifests/*"))) > 10 or process.poll(), seconds=60)
        for _ in range(SAMPLES):
            time.sleep(seconds)
            assert process.poll() is None, told_by(out).read_text()
            samples.append(sample(process.pid, out))
    finally:
        process.send_signal(signal.SIGTERM)
        code = finish(process, seconds=60)
    assert code == 75, told_by(out).read_text()
    show(samples, seconds)

    before, after = samples[: SAMPLES // 2], samples[SAMPLES // 2 :]
    for name in ("mebibytes", "open_files", "other_bytes"):
        first, second = (max(getattr(each, name) for each in half) for half in (before, after))
        assert second <= ALLOWED_GROWTH * first, name
    # Besides: the one that is trained on, and one that its commit is about to remove.
    assert max(each.shard_steps for each in samples) <= KEPT_STEPS + 2
    assert not list(out.rglob(".tmp-*"))
    assert not find_damage(Run.open(out)).damage
