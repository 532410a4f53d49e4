"""Faults on purpose, at every place where a file comes into being: `CIT_FAIL_AT=NAME:N:MODE`.

NAME is a kind of file and a moment of its writing, such as `manifest.synced`; the fault happens
the N-th time that a process comes there, once. MODE: `kill` (SIGKILL to itself), `raise`, `enospc`
(a full disk), `sleep` (for ever) or `sleep=SECONDS`. Without the variable nothing is done.
"""

import errno
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CIT_FAIL_AT"

# Before there is a temporary file; when it is written; when it is on the disk, under its temporary
# name; when it has its final name, before that is on the disk.
MOMENTS = ("start", "written", "synced", "renamed")

# Kind -> what its paths match at their end; the first that matches counts.
KINDS = {
    "checkpoint_link": "checkpoints/[bl]*st",
    "checkpoint": "checkpoints/update-*",
    "checkpoint_file": "checkpoints/*/*",
    "manifest": "manifests/step=*.json",
    "selections": "selections/step=*/*",
    "near_misses": "near_misses/step=*/*",
    "rounds": "rounds/step=*/*",
    "used": "used/step=*/*",
    "rejects": "rejects/step=*/*",
    "mid_step": "mid_step.json",
    "mid_step_file": "mid_step/step=*/*",
    "shard": "*.tar",
    "shard_entry": "*-[0-9][0-9][0-9][0-9][0-9][0-9].json",
    "shard_rejects": "lane*.rejects.json",
    "shard_list": "lane*.json",
    "index": "index/manifest.json",
    "index_vectors": "vectors-*.npy",
    "features": "part-*.npy",
    "head": "head.json",
    "config": "config.json",
    "environment": "environment.json",
    "metadata": "metadata.json",
    "metrics": "metrics.jsonl",
    "status": "status.json",
    "pool_manifest": "pool.json",
    "pool_part": "pairs/part-*.parquet",
    "pool_rejects": "rejects/part-*.parquet",
    "pool_tokens_list": "tokens.json",
    "pool_tokens": "tokens/*",
    "pool_catalog": "pool.duckdb",
    "pool_block": "block-*.arrow",
    "pool_block_end": "end.json",
    "yfcc_key": "key.json",
    "yfcc_ids": "ids.npy",
    "scores": "*.arrow",
}
# A file or folder whose name is the user's: a run, a pool, an export, a page.
OTHER = "other"


@dataclass(frozen=True)
class FailAt:
    """The fault that is asked for."""

    name: str
    number: int
    mode: str
    seconds: float | None = None


class PlannedError(RuntimeError):
    """The fault of mode `raise`."""


def fail_points() -> list[str]:
    """The names of all fail points."""
    return [f"{kind}.{moment}" for kind in (*KINDS, OTHER) for moment in MOMENTS]


def fail_at() -> FailAt | None:
    """The fault that the environment asks for.

    Raises:
        ValueError: It is not written as it must be.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    name, _, rest = text.partition(":")
    number, _, how = rest.partition(":")
    mode, equals, seconds = how.partition("=")
    is_number = number.isdecimal() and int(number) > 0
    is_mode = mode in ("kill", "raise", "enospc", "sleep") and (mode == "sleep" or not equals)
    if name not in fail_points() or not (is_number and is_mode):
        raise ValueError(
            f"{VARIABLE} is {text!r}; it is NAME:N:MODE, where NAME is a kind of file and one of "
            f"{', '.join(MOMENTS)} (as manifest.synced), N counts from 1, and MODE is kill, raise, "
            f"enospc, sleep or sleep=SECONDS. Kinds: {', '.join((*KINDS, OTHER))}"
        )
    try:
        return FailAt(name, int(number), mode, float(seconds) if equals else None)
    except ValueError:
        raise ValueError(f"{VARIABLE} is {text!r}; {seconds!r} is no number of seconds") from None


def kind_of(path: Path) -> str:
    """What kind of file a path is."""
    return next((kind for kind, pattern in KINDS.items() if path.match(pattern)), OTHER)


def reach(path: Path, moment: str) -> None:
    """Say that the writing of `path` has come to a moment; the fault planned for it happens."""
    planned = fail_at()
    if planned is not None and planned.name == f"{kind_of(path)}.{moment}":
        with _lock:
            _times[planned] += 1
            is_now = _times[planned] == planned.number
        if is_now:
            _fail(planned, path)


# How often this process has come to a planned fault; threads write side by side.
_times: Counter[FailAt] = Counter()
_lock = threading.Lock()


def _fail(planned: FailAt, path: Path) -> None:
    if planned.mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif planned.mode == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    elif planned.mode == "raise":
        raise PlannedError(f"{planned.name} of {path}, as {VARIABLE} asks")
    elif planned.seconds is not None:
        time.sleep(planned.seconds)
    else:
        threading.Event().wait()
