"""What processes of the tests of a row cache run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cit_curate.storage.row_cache import RowCache


def store_pairs(
    folder: Path,
    numbers: Sequence[int],
    environment: Mapping[str, str],
    max_bytes: int | None = None,
) -> None:
    """Write rows two at a time, under the keys and with the values of `test_row_cache`."""
    os.environ.update(environment)
    cache = RowCache(folder, key_bytes=4, max_bytes=max_bytes, removes_damaged=True)
    for first in range(0, len(numbers), 2):
        pair = numbers[first : first + 2]
        keys = [number.to_bytes(4, "little") for number in pair]
        if not cache.knows(keys).all():
            cache.add(keys, np.array([[n, -n, 0.1] for n in pair], np.float32))
            cache.flush()
