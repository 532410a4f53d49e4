"""What spawned processes of tests run: they import this by name, as they could not a test file."""

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq

from cit_curate.pool.pool import Pool


def process_id(_: object) -> int:
    """Of the process that runs it."""
    return os.getpid()


def kill_itself(_: object) -> None:
    """As if memory had run out."""
    os.kill(os.getpid(), signal.SIGKILL)


def total_bytes(path: Path) -> int:
    """Bytes of all images of a pool's pairs."""
    pool = Pool.open(path)
    pairs = [row for part in pool.parts for row in pq.read_table(path / part.file.path).to_pylist()]
    return sum(len(pool.image_bytes(row["image_uri"], row["source"])) for row in pairs)
