"""Reader of Parquet files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.uri import cell_uri
from cit_curate.sources.columns import Columns
from cit_curate.sources.embedded import embedded_uris, is_embedded
from cit_curate.sources.rows import ROWS_PER_BATCH, SourceReader, SourceRows


def open_parquet(path: Path, columns: Columns, *, id_prefix: str | None = None) -> SourceReader:
    """Open a Parquet file; whole numbers become decimal text where text is wanted.

    The image column may hold the images themselves, as bytes or as Hugging Face's struct.

    Args:
        path: The file.
        columns: Its columns.
        id_prefix: Given: the file has no column of image ids; they are `{id_prefix}/{row}`.

    Raises:
        ConfigError: A chosen column is missing or holds neither text nor, for ids, whole numbers.
        DamagedError: The file is cut or empty.
    """
    schema = parquet_schema(path)
    columns.check(schema.names, path, without_ids=id_prefix is not None)
    check_types(path, columns, schema)
    return SourceReader(
        columns=columns,
        extra_types={name: schema.field(name).type for name in columns.extra},
        read=lambda: _read(path, columns, schema, id_prefix),
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
        raise _damaged(path, error) from error


def check_types(path: Path, columns: Columns, schema: pa.Schema) -> None:
    """Raise unless the chosen columns that a table has hold text, ids or images.

    Raises:
        ConfigError: Names the column, its type and what it must hold.
    """
    as_text = (columns.image_id, columns.text_key, columns.caption, *columns.text)
    for name in columns.names:
        if name not in schema.names:
            continue
        found = schema.field(name).type
        if name not in as_text and is_embedded(found):
            continue
        wanted, allowed = "text", {"text", "null"}
        if name == columns.image_id:
            wanted, allowed = "text or whole numbers", {"text", "null", "whole number"}
        if column_kind(found) not in allowed:
            raise ConfigError(f"{path}: column {name!r} is {found}, but must hold {wanted}")


def made_id(id_prefix: str, row: int) -> str:
    """The id of an image that has none of its own: the row, from 0, behind a prefix."""
    return f"{id_prefix}/{row:08d}"


def column_kind(kind: pa.DataType) -> str:
    """`text`, `whole number` or `null` for the types that are read alike, else the type's name."""
    if pa.types.is_dictionary(kind):
        return column_kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind):
        return "whole number"
    return str(kind)


def _read(
    path: Path, columns: Columns, schema: pa.Schema, id_prefix: str | None
) -> Iterator[SourceRows]:
    made = {columns.image_id} if id_prefix is not None else set()
    names = [name for name in dict.fromkeys((*columns.names, *columns.extra)) if name not in made]
    image = columns.image
    embedded = image if image and is_embedded(schema.field(image).type) else None
    record = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in _groups(file, embedded):
                wanted = [name for name in names if not group.has_every_image or name != embedded]
                for batch in file.iter_batches(
                    batch_size=ROWS_PER_BATCH, row_groups=group.numbers, columns=wanted
                ):
                    rows = range(record, record + batch.num_rows)
                    values: dict[str, list[str | None]] = {}
                    for name in columns.names:
                        if name in made:
                            values[name] = [made_id(id_prefix or "", row) for row in rows]
                        elif name != embedded:
                            values[name] = column_texts(batch.column(name))
                        elif group.has_every_image:
                            values[name] = [cell_uri("parquet", str(path), name, n) for n in rows]
                        else:
                            values[name] = embedded_uris(
                                batch.column(name), "parquet", str(path), name, record
                            )
                    yield SourceRows(
                        num_records=batch.num_rows,
                        records=list(rows),
                        lines=list(range(record + 1, record + batch.num_rows + 1)),
                        values=values,
                        extra={name: batch.column(name) for name in columns.extra},
                    )
                    record += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


@dataclass(frozen=True)
class _Groups:
    """Row groups that are read alike; `has_every_image`: no cell of the image column is null."""

    numbers: list[int]
    has_every_image: bool


def _groups(file: pq.ParquetFile, embedded: str | None) -> list[_Groups]:
    """All row groups at once, or one by one where what the footer says of images matters.

    Image bytes are most of such a file: they are not read where the footer counts no nulls.
    """
    numbers = list(range(file.num_row_groups))
    if embedded is None:
        return [_Groups(numbers, has_every_image=False)]
    leaves = (embedded, f"{embedded}.bytes")
    found = []
    for number in numbers:
        entry = file.metadata.row_group(number)
        chunks = (entry.column(place) for place in range(entry.num_columns))
        statistics = next(chunk.statistics for chunk in chunks if chunk.path_in_schema in leaves)
        known = statistics is not None and statistics.has_null_count
        found.append(_Groups([number], has_every_image=known and statistics.null_count == 0))
    return found


def column_texts(values: pa.Array) -> list[str | None]:
    """The values as text; a byte that was not UTF-8 is a lone surrogate."""
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
