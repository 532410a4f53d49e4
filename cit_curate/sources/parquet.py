"""Reader of Parquet files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.uri import cell_uri
from cit_curate.sources.columns import LIST_KEY, Columns, column_kind, is_list
from cit_curate.sources.embedded import embedded_uris, is_embedded
from cit_curate.sources.rows import (
    ROWS_PER_BATCH,
    SourceReader,
    SourceRows,
    carried_column,
    cells_of,
    column_cells,
)


def open_parquet(path: Path, columns: Columns) -> SourceReader:
    """Open a Parquet file; image ids that are whole numbers become decimal text.

    The image column may hold the images themselves, as bytes or as Hugging Face's struct.

    Args:
        path: The file.
        columns: The columns to read.

    Raises:
        ConfigError: A chosen column is missing or holds neither text nor, for ids, whole numbers.
        DamagedError: The file is cut or empty.
    """
    schema = parquet_schema(path)
    columns = columns.found_in(schema.names, path)
    columns = check_types(path, columns, schema)
    return SourceReader(
        columns=columns,
        extra_types={name: schema.field(name).type for name in columns.extra},
        read=lambda: _read(path, columns, schema),
    )


def parquet_schema(path: Path) -> pa.Schema:
    """The Arrow schema of a Parquet file.

    Raises:
        DamagedError: The file is cut or empty.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            return file.schema_arrow
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged_source(path, error) from error


def first_parquet_rows(path: Path, num_rows: int) -> pa.RecordBatch:
    """The first rows of a Parquet file, at most `num_rows`.

    Raises:
        DamagedError: The file is cut or empty.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            empty = pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
            return next(file.iter_batches(batch_size=num_rows), empty)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged_source(path, error) from error


def check_types(path: Path, columns: Columns, schema: pa.Schema) -> Columns:
    """The columns, if each that a table has holds text, ids or images; for lists, `LIST_KEY` too.

    Raises:
        ConfigError: A column has another type. The message names the column, its type and the
            types that it may have.
    """
    as_text = (columns.image_id, columns.text_key, columns.caption, *columns.text)
    for name in columns.names:
        if name not in schema.names:
            continue
        kind = single = schema.field(name).type
        if name not in as_text and is_embedded(kind):
            continue
        wanted, allowed = "text", {"text", "null"}
        if name == columns.image_id:
            wanted, allowed = "text or whole numbers", {"text", "null", "whole number"}
        elif columns.may_be_list(name):
            wanted, single = "text or lists of text", kind.value_type if is_list(kind) else kind
        if column_kind(single) not in allowed:
            raise ConfigError(f"{path}: column {name!r} is {kind}, but must hold {wanted}")
    has_lists = columns.caption and is_list(schema.field(columns.caption).type)
    return columns.with_list_key() if has_lists else columns


def _read(path: Path, columns: Columns, schema: pa.Schema) -> Iterator[SourceRows]:
    image = columns.image
    embedded = image if image and is_embedded(schema.field(image).type) else None
    names = [
        name for name in dict.fromkeys((*columns.names, *columns.extra)) if name in schema.names
    ]
    record = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in _groups(file, embedded):
                wanted = [name for name in names if not group.has_every_image or name != embedded]
                for batch in file.iter_batches(
                    batch_size=ROWS_PER_BATCH, row_groups=group.numbers, columns=wanted
                ):
                    rows = range(record, record + batch.num_rows)
                    uris: Sequence[str | None] | None = None
                    if embedded and group.has_every_image:
                        uris = [cell_uri("parquet", str(path), embedded, row) for row in rows]
                    elif embedded:
                        cells = batch.column(embedded)
                        uris = embedded_uris(cells, "parquet", str(path), embedded, record)
                    yield rows_of_batch(batch, columns, record, uris=uris)
                    record += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged_source(path, error) from error


def rows_of_batch(
    batch: pa.RecordBatch,
    columns: Columns,
    first: int,
    *,
    uris: Sequence[str | None] | None = None,
) -> SourceRows:
    """The rows of a batch of a table.

    Args:
        batch: The batch. It may lack the image column if `uris` replace it.
        columns: The columns to read.
        first: The number of the batch's first row in the source, from 0.
        uris: The uris of images embedded in the table; None = the image column holds the paths.
    """
    records = np.arange(first, first + batch.num_rows)
    return SourceRows(
        num_records=batch.num_rows,
        records=records,
        lines=records + 1,
        cells={name: _cells(batch, columns, name, uris) for name in columns.names},
        extra={name: carried_column(batch.column(name)) for name in columns.extra},
    )


def _cells(
    batch: pa.RecordBatch, columns: Columns, name: str, uris: Sequence[str | None] | None
) -> pa.Array:
    if name == columns.image and uris is not None:
        return cells_of(uris)
    if name == LIST_KEY:
        return cells_of([columns.list_key(is_list=True)] * batch.num_rows)
    return column_cells(batch.column(name))


@dataclass(frozen=True)
class _Groups:
    """Row groups to read together; `has_every_image`: no cell of the image column is null."""

    numbers: list[int]
    has_every_image: bool


def _groups(file: pq.ParquetFile, embedded: str | None) -> list[_Groups]:
    """All row groups together, or one by one for a file with embedded images.

    Image bytes are most of such a file. They are not read where the footer counts no nulls.
    """
    numbers = list(range(file.num_row_groups))
    if embedded is None:
        return [_Groups(numbers, has_every_image=False)]
    leaves = (embedded, f"{embedded}.bytes")
    groups = []
    for number in numbers:
        entry = file.metadata.row_group(number)
        chunks = (entry.column(index) for index in range(entry.num_columns))
        statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema in leaves)
        known = statistics is not None and statistics.has_null_count
        groups.append(_Groups([number], has_every_image=known and statistics.null_count == 0))
    return groups


def damaged_source(path: Path, error: Exception) -> DamagedError:
    """The error for an Arrow or Parquet file that cannot be read."""
    size = path.stat().st_size
    return DamagedError(f"{path} ({size:,} bytes) is damaged or still being written: {error}")
