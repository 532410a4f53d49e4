"""Reader of Parquet files."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import ROWS_PER_BATCH, SourceReader, SourceRows


def open_parquet(path: Path, columns: Columns) -> SourceReader:
    """Open a Parquet file; whole numbers become decimal text where text is wanted.

    Raises:
        ConfigError: A chosen column is missing or holds neither text nor, for ids, whole numbers.
        DamagedError: The file is cut or empty.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            schema = file.schema_arrow
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error
    columns.check(schema.names, path)
    for name in columns.names:
        kind = column_kind(schema.field(name).type)
        allowed = {"text", "null", "whole number"} if name == columns.image_id else {"text", "null"}
        if kind not in allowed:
            wanted = "text or whole numbers" if name == columns.image_id else "text"
            found = schema.field(name).type
            raise ConfigError(f"{path}: column {name!r} is {found}, but must hold {wanted}")
    return SourceReader(
        columns=columns,
        extra_types={name: schema.field(name).type for name in columns.extra},
        read=lambda: _read(path, columns),
    )


def column_kind(kind: pa.DataType) -> str:
    """`text`, `whole number` or `null` for the types that are read alike, else the type's name."""
    if pa.types.is_dictionary(kind):
        return column_kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind):
        return "whole number"
    return str(kind)


def _read(path: Path, columns: Columns) -> Iterator[SourceRows]:
    names = list(dict.fromkeys((*columns.names, *columns.extra)))
    record = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=names):
                yield SourceRows(
                    num_records=batch.num_rows,
                    records=list(range(record, record + batch.num_rows)),
                    lines=list(range(record + 1, record + batch.num_rows + 1)),
                    values={name: _texts(batch.column(name)) for name in columns.names},
                    extra={name: batch.column(name) for name in columns.extra},
                )
                record += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def _texts(values: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if column_kind(values.type) != "text":
        return [None if value is None else str(value) for value in values.to_pylist()]
    try:
        return list(values.to_pylist())
    except UnicodeDecodeError:
        # Arrow writes whatever bytes it was given as "string".
        encoded = values.cast(pa.large_string()).view(pa.large_binary()).to_pylist()
        return [
            None if value is None else value.decode("utf-8", errors="surrogateescape")
            for value in encoded
        ]


def _damaged(path: Path, error: Exception) -> DamagedError:
    size = path.stat().st_size
    return DamagedError(f"{path} ({size:,} bytes) is damaged or still being written: {error}")
