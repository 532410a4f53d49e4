"""Columns that the folders of a file give it: `lang=en/part-0.parquet` has a column `lang`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pyarrow as pa

from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import SourceReader, SourceRows


def with_partitions(
    open_file: Callable[[Columns], SourceReader],
    columns: Columns,
    partitions: Mapping[str, str | None],
) -> SourceReader:
    """Open a table with the columns of its folders among `Columns.extra`, as text.

    Where the file has such a column too, that of the folder counts, as in DuckDB.

    Args:
        open_file: A function that opens the table itself.
        columns: The columns to read.
        partitions: The value of each column of the folders; None for null.
    """
    own = tuple(name for name in columns.extra if name not in partitions)
    reader = open_file(replace(columns, extra=own))
    assert reader.read is not None
    assert reader.columns is not None
    read = reader.read

    def rows() -> Iterator[SourceRows]:
        for batch in read():
            num_rows = len(batch.lines)
            extra = {
                name: pa.array([partitions[name]] * num_rows, pa.string())
                if name in partitions
                else batch.extra[name]
                for name in columns.extra
            }
            yield replace(batch, extra=extra)

    types = {
        name: pa.string() if name in partitions else reader.extra_types[name]
        for name in columns.extra
    }
    return replace(
        reader,
        columns=replace(reader.columns, extra=columns.extra),
        extra_types=types,
        read=rows,
    )
