"""What a spawned process of a test runs: it imports this by name, as it could not a test file."""

from pathlib import Path

import pyarrow.parquet as pq

from cit_curate.pool.pool import Pool


def total_bytes(path: Path) -> int:
    """Bytes of all images of a pool's pairs."""
    pool = Pool.open(path)
    pairs = [row for part in pool.parts for row in pq.read_table(path / part.file.path).to_pylist()]
    return sum(len(pool.image_bytes(row["image_uri"], row["source"])) for row in pairs)
