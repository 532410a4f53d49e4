"""Whole runs of `cit train` on drawn pictures: twice, killed, on two ranks, ahead, on the CPU."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from cit_curate.run.ledger import Run
from cit_curate.run.ledger_tables import LEDGER_TABLES
from scripts.bench.drawn_pool import drawn_config
from scripts.gpu_check.outcomes import Finding
from scripts.gpu_check.setting import ROOT, Setting, own_environment

_POLL_SECONDS = 0.005


def same_run_twice(setting: Setting) -> Finding:
    """The same run twice: the same ledger and weights, to the byte."""
    first, second = reference(setting), setting.folder / "again"
    seconds = train(setting, second)
    updates = len(train_lines(first))
    measured = {"updates": updates, "seconds with start": seconds, "last loss": losses(first)[-1]}
    return Finding(measured, differences(first, second))


def killed_and_resumed(setting: Setting) -> Finding:
    """A run that is killed in its second outer step and resumed: the bytes of one that was not."""
    whole, killed = reference(setting), setting.folder / "killed"
    at = settings(setting)["curate_every"] + 1
    saves = {"save_every": setting.size(2, 1)}
    process = start(setting, killed, saves)
    while process.poll() is None and len(lines_of(killed)) < at:
        time.sleep(_POLL_SECONDS)
    if process.poll() is not None:
        return Finding({}, (f"the run ended with code {process.returncode} before it was killed",))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(lines_of(killed))
    train(setting, killed, resume="", **saves)
    return Finding({"killed after update": done}, differences(whole, killed))


def two_ranks(setting: Setting) -> Finding:
    """Two ranks, which on one GPU share it: the first pairs of one rank, and nearly its losses."""
    alone, shared = reference(setting), setting.folder / "ranks"
    seconds = train(setting, shared, nproc=2)
    wrong = first_step_differences(alone, shared)
    apart = apart_by(alone, shared)
    if apart > 0.05:
        wrong = (*wrong, f"the mean loss is {apart:.1%} off that of one rank")
    later = overlap(alone, shared)
    if later < 0.9:
        wrong = (*wrong, f"only {later:.0%} of the later pairs are those of one rank")
    measured = {"loss apart": apart, "pairs in common": later, "seconds with start": seconds}
    return Finding(measured, wrong)


def against_cpu(setting: Setting) -> Finding:
    """The same run on the CPU: nearly the same pairs at first, and nearly the same losses."""
    setting.need_gpu()
    on_gpu, on_cpu = reference(setting), setting.folder / "on-cpu"
    seconds = train(setting, on_cpu, device="cpu")
    first = overlap(on_cpu, on_gpu, outer_step=0)
    apart = apart_by(on_cpu, on_gpu)
    wrong = []
    if first < 0.98:
        wrong.append(f"only {first:.1%} of the first pairs are those of the CPU")
    if apart > 0.1:
        wrong.append(f"the mean loss is {apart:.1%} off that of the CPU")
    measured = {"first pairs in common": first, "loss apart": apart, "seconds on the CPU": seconds}
    return Finding(measured, tuple(wrong))


def curated_ahead(setting: Setting) -> Finding:
    """`--ahead 1` beside training on the same device, with cached features: stale by one step."""
    out = setting.folder / "ahead"
    fields = {"ahead": 1, "curate_device": setting.device, "vision_features": "cached"}
    seconds = train(setting, out, **fields)
    staleness = [line["staleness"] for line in Run.open(out).metrics() if "staleness" in line]
    lanes, every = 2, settings(setting)["curate_every"]
    expected = [0] * lanes + [every] * (len(staleness) - lanes)
    wrong = () if staleness == expected else (f"staleness is {staleness}, not {expected}",)
    return Finding({"outer steps": len(staleness) // lanes, "seconds with start": seconds}, wrong)


def settings(setting: Setting) -> dict[str, Any]:
    """The fields of every run, besides those of the recipe and the drawn pool."""
    return {
        "lanes": 2,
        "batch_size": setting.size(64, 8),
        "curate_every": setting.size(5, 2),
        "max_updates": setting.size(15, 4),
        "eval_every": setting.size(5, 2),
        "vision_features": "live",
        "num_workers": setting.size(2, 0),
        "vector_cache_bytes": 0,  # the second run must compute its vectors again
        "device": setting.device,
    }


def reference(setting: Setting) -> Path:
    """The run that others are compared with; the first check that needs it makes it."""
    out = setting.folder / "reference"
    if not (out / "done").exists():
        train(setting, out, overwrite="")  # a check that was killed may have left a part of it
        (out / "done").touch()
    return out


def train(setting: Setting, out: Path, **changes: object) -> float:
    """Run `cit train` to its end; gives its seconds.

    Raises:
        RuntimeError: It failed.
    """
    started = time.monotonic()
    process = start(setting, out, changes)
    if process.wait() != 0:
        raise RuntimeError(f"cit train ended with code {process.returncode}")
    return time.monotonic() - started


def start(setting: Setting, out: Path, changes: Mapping[str, object]) -> subprocess.Popen[bytes]:
    """Start `cit train`, whose messages go to the log of the check.

    Args:
        setting: See `Setting`.
        out: The run.
        changes: Further flags; a flag without a value has the value "".
    """
    config = drawn_config(setting.folder / "drawn", setting.size(2_048, 400))
    own = {
        "pool": config.pool,
        "metadata": config.metadata.metadata,
        "eval_data": config.evaluation.eval_data,
        "out": out,
    }
    flags = []
    for name, value in {**own, **settings(setting), **changes}.items():
        flags += [f"--{name.replace('_', '-')}", *([str(value)] if value != "" else [])]
    command = [sys.executable, "-m", "cit_train.cli", "train", "laptop", *flags]
    print(" ".join(command), flush=True)
    return subprocess.Popen(command, cwd=ROOT, env=own_environment())


def differences(one: Path, other: Path) -> tuple[str, ...]:
    """What differs in the bytes of the ledgers and of the last weights."""
    first, second = hashes(one), hashes(other)
    names = sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )
    if not names:
        return ()
    return (f"{len(names)} of {len(first)} files differ, such as {', '.join(names[:3])}",)


def first_step_differences(one: Path, other: Path) -> tuple[str, ...]:
    """What differs in the ledgers of the first outer step, without the commit."""
    first, second = (
        {
            name: value
            for name, value in hashes(path).items()
            if "step=000000" in name and "manifests" not in name
        }
        for path in (one, other)
    )
    return () if first == second else ("the ledger of the first outer step differs",)


def hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the ledger's files and of the last weights, by their names in the run."""
    files = [
        path
        for table in (*LEDGER_TABLES, "manifests")
        for path in sorted((run / table).rglob("*"))
        if path.is_file()
    ]
    last = run / "checkpoints" / "last"
    files += [last / "model.safetensors", last / "optimizer.safetensors"]
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def overlap(one: Path, other: Path, *, outer_step: int | None = None) -> float:
    """The share of the pairs of one run's outer step, or of all, that the other has there too."""
    first, second = (
        {
            (row["outer_step"], row["pair_key"])
            for row in Run.open(path).read("selections").to_pylist()
            if outer_step in (None, row["outer_step"])
        }
        for path in (one, other)
    )
    return len(first & second) / max(len(first), 1)


def apart_by(one: Path, other: Path) -> float:
    """How far the mean losses are apart, as a share."""
    return abs(mean(losses(one)) / mean(losses(other)) - 1)


def losses(run: Path) -> list[float]:
    """The loss of each update."""
    return [line["loss"] for line in train_lines(run)]


def train_lines(run: Path) -> list[dict[str, Any]]:
    """What the run logged of its updates."""
    return [line for line in Run.open(run).metrics() if line["kind"] == "train"]


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The updates that a run which still works has logged so far."""
    path = run / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.is_file() else ""
    found = [json.loads(line) for line in whole.splitlines()]
    return [line for line in found if line["kind"] == "train"]
