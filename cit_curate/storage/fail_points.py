"""Deliberate faults at each step of writing a file: `CIT_FAIL_AT=NAME:N:MODE`.

NAME is a kind of file and a moment of its writing, such as `manifest.synced`. The fault happens
once, at the N-th time that a process reaches that moment. MODE: `kill` (SIGKILL to itself),
`raise`, `enospc` (a full disk), `sleep` (for ever) or `sleep=SECONDS`. Without the variable nothing
is done.
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

# Before the temporary file exists; once it is written; once it is on the disk, under its temporary
# name; once it has its final name, before the rename is on the disk.
MOMENTS = ("start", "written", "synced", "renamed")

# Kind -> the pattern that the end of its paths matches; the first match counts.
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
    "vectors": "vectors/*/part-*.npy",
    "features": "part-*.npy",
    "head": "head.json",
    "config": "config.json",
    "environment": "environment.json",
    "metadata": "metadata.json",
    "metrics": "metrics.jsonl",
    "status": "status.json",
    "pool_manifest": "pool.json",
    "pool_report": "build.json",
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
    "scan_journal": "scan.json",
    "scan_journal_file": "lane=*/*.parquet",
}
# A file or folder that the user names: a run, a pool, an export, a page.
OTHER = "other"


@dataclass(frozen=True)
class FailAt:
    """A requested fault."""

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
    """The fault that the environment requests.

    Raises:
        ValueError: The variable is malformed.
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
        raise ValueError(f"{VARIABLE} is {text!r}; {seconds!r} is not a number") from None


def kind_of(path: Path) -> str:
    """The kind of file at a path."""
    return next((kind for kind, pattern in KINDS.items() if path.match(pattern)), OTHER)


def reach(path: Path, moment: str) -> None:
    """Mark that the writing of `path` has reached a moment, and cause the fault planned for it."""
    planned = fail_at()
    if planned is not None and planned.name == f"{kind_of(path)}.{moment}":
        with _lock:
            _times[planned] += 1
            is_now = _times[planned] == planned.number
        if is_now:
            _fail(planned, path)


# How often this process has reached a planned fault; several threads may write at once.
_times: Counter[FailAt] = Counter()
_lock = threading.Lock()


def _fail(planned: FailAt, path: Path) -> None:
    if planned.mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif planned.mode == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    elif planned.mode == "raise":
        raise PlannedError(f"{planned.name} of {path}, as {VARIABLE} requests")
    elif planned.seconds is not None:
        time.sleep(planned.seconds)
    else:
        threading.Event().wait()
