"""Reader of Parquet files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.images.uri import cell_uri
from cit_curate.sources.arrow.columns import check_types, rows_of_batch, with_image
from cit_curate.sources.arrow.img2dataset import (
    STATUS_COLUMNS,
    failed_downloads,
    is_img2dataset,
    with_defaults,
)
from cit_curate.sources.arrow.ipc import damaged_source, image_note, several_note
from cit_curate.sources.columns import Columns
from cit_curate.sources.embedded import embedded_uris, is_embedded
from cit_curate.sources.rows import ROWS_PER_BATCH, SourceReader, SourceRows
from cit_curate.sources.text.files import check_uncompressed


def open_parquet(path: Path, columns: Columns, *, is_dataset: bool = False) -> SourceReader:
    """Open a Parquet file; ids of numbers and UUIDs become text (`arrow.columns`).

    The image column may hold the images themselves, as bytes or as Hugging Face's struct. In a file
    of img2dataset, rows of downloads that failed are rejected, and its own columns are the default.

    Args:
        path: The file.
        columns: The columns to read.
        is_dataset: See `arrow.columns.with_image`.

    Raises:
        ConfigError: A chosen column is missing or has a type that it may not have, or the file is
            compressed as a whole.
        DamagedError: The file is cut or empty.
    """
    check_uncompressed(path, "a Parquet file compresses its columns itself")
    schema = parquet_schema(path)
    downloads = is_img2dataset(schema.names)
    chosen = with_defaults(columns, schema.names) if downloads else columns
    chosen = with_image(chosen, schema, is_dataset=is_dataset).found_in(schema.names, path)
    chosen = check_types(path, chosen, schema)
    notes = several_note(columns, schema)
    if chosen.image != columns.image and not is_dataset:
        notes += image_note(chosen.image)
    if downloads:
        notes += ("a table of img2dataset: rows whose status is not success are rejected",)
    return SourceReader(
        columns=chosen,
        extra_types={name: schema.field(name).type for name in chosen.extra},
        read=lambda: _read(path, chosen, schema),
        notes=notes,
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


def _read(path: Path, columns: Columns, schema: pa.Schema) -> Iterator[SourceRows]:
    image = columns.image
    embedded = image if image and is_embedded(schema.field(image).type) else None
    statuses = STATUS_COLUMNS if is_img2dataset(schema.names) else ()
    wanted_names = dict.fromkeys((*columns.names, *columns.extra, *statuses))
    names = [name for name in wanted_names if name in schema.names]
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
                    failed = failed_downloads(batch) if statuses else None
                    yield rows_of_batch(batch, columns, record, uris=uris, failed=failed)
                    record += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged_source(path, error) from error


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
