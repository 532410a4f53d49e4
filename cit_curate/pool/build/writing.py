"""Writing the parts of a planned pool from slices of blocks, in parallel."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cit_curate.arrow_numpy import repeated
from cit_curate.engines.workers import Mapper
from cit_curate.images.root import ImageRoot
from cit_curate.pool.build.plan import Piece, Plan
from cit_curate.pool.build.respell import respelled
from cit_curate.pool.parts import PartsWritten, cut_groups, write_parts

_SOURCE = "source"


@dataclass(frozen=True)
class PartTask:
    """A part of the pool to write: its number and its pairs.

    Attributes:
        folder: The pool's folder, with `pairs` in it.
        schema: The pool's schema.
        max_rows: Largest number of rows in a row group.
        respell: The image root of each source whose image paths are respelled (`respell`).
    """

    folder: Path
    number: int
    pieces: tuple[Piece, ...]
    schema: pa.Schema
    max_rows: int
    respell: Mapping[str, ImageRoot]


def write_part(task: PartTask) -> PartsWritten:
    """Write one part, whose pairs fit in a single file."""
    tables = (table for piece in task.pieces for table in _pairs(piece, task.schema))
    counts: Counter[str] = Counter()
    groups = cut_groups(respelled(tables, task.respell, counts), task.max_rows)
    written = write_parts(groups, task.folder, task.schema, first_part=task.number)
    assert len(written.parts) == 1
    written.respelled = counts
    return written


def write_pairs(
    mapped: Mapper,
    plan: Plan,
    folder: Path,
    schema: pa.Schema,
    progress: Callable[[int], None],
    *,
    respell: Mapping[str, ImageRoot],
) -> PartsWritten:
    """Write the parts of a pool.

    Args:
        mapped: Mapper that writes the parts in parallel.
        plan: The plan of the pool.
        folder: The pool's folder.
        schema: The pool's schema.
        progress: Callback with the number of pairs written so far.
        respell: The image root of each source whose image paths are respelled (`respell`).
    """
    if plan.parts is None:
        return _write_scattered(plan, folder, schema, progress, respell)
    (folder / "pairs").mkdir()
    tasks = [
        PartTask(folder, number, pieces, schema, plan.max_rows, respell)
        for number, pieces in enumerate(plan.parts)
    ]
    written = PartsWritten()
    for part in mapped(write_part, tasks):
        written.add(part)
        progress(written.num_pairs)
    return written


def _write_scattered(
    plan: Plan,
    folder: Path,
    schema: pa.Schema,
    progress: Callable[[int], None],
    respell: Mapping[str, ImageRoot],
) -> PartsWritten:
    """Write the parts one after another, with the rows of each image brought together."""
    assert plan.staging is not None
    all_pairs = (
        table for kept in plan.kept for table in _pairs(Piece(kept, 0, kept.num_pairs), schema)
    )

    def reported() -> Iterator[pa.Table]:
        rows = 0
        for table in grouped:
            yield table
            rows += table.num_rows
            progress(rows)

    counts: Counter[str] = Counter()
    with closing(plan.staging.grouped(all_pairs, schema)) as grouped:
        tables = respelled(reported(), respell, counts)
        written = write_parts(cut_groups(tables, plan.max_rows), folder, schema)
    written.respelled = counts
    return written


def _pairs(piece: Piece, schema: pa.Schema) -> Iterator[pa.Table]:
    """The pairs of a piece, as `schema`."""
    block, changes = piece.kept.block, piece.kept.changes()
    names = [name for name in schema.names if name != _SOURCE]
    for table in block.pairs(piece.start, piece.stop, changes, names):
        columns = {name: table[name] for name in names}
        columns[_SOURCE] = repeated(block.source, table.num_rows)
        yield pa.table({name: columns[name] for name in schema.names}).cast(schema)
