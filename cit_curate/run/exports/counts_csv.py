"""Counts as CSV, with a guard against formulas only where there are any."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from cit_curate.config import CsvGuard
from cit_curate.csv_cells import GUARDED, csv_line, needs_guards, with_guards


def write_csv(batches: Callable[[], Generator[pa.RecordBatch]], path: Path, guard: CsvGuard) -> int:
    """Write the rows of some batches, and return their number.

    Args:
        batches: Opens the batches; called again at the first formula, so that the rows before it
            are written twice.
        path: The file.
        guard: `formulas`, or `off`.
    """
    with path.open("w", encoding="utf-8", newline="") as stream, closing(batches()) as first:
        num_pairs = _write_rows(first, stream, stops_at_formula=guard != "off")
    if num_pairs is None:
        with path.open("w", encoding="utf-8", newline="") as stream, closing(batches()) as again:
            num_pairs = _write_rows(again, stream, has_guards=True)
        assert num_pairs is not None
    return num_pairs


def _write_rows(
    batches: Iterator[pa.RecordBatch],
    stream: TextIO,
    *,
    stops_at_formula: bool = False,
    has_guards: bool = False,
) -> int | None:
    """The number of rows; None if it stopped at a formula."""
    num_pairs = 0
    for batch in batches:
        names = batch.schema.names
        if not num_pairs:
            stream.write(csv_line([*names, GUARDED] if has_guards else names))
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if stops_at_formula and needs_guards(row):
                return None
            stream.write(csv_line(with_guards(names, row) if has_guards else row))
        num_pairs += len(batch)
    return num_pairs
