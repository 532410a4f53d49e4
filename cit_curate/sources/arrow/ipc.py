"""Reader of Arrow IPC: files and streams (`.arrow`, `.feather`, `.ipc`), told by their content."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.archives import open_ipc
from cit_curate.sources.arrow.columns import check_types, rows_of_batch, with_image
from cit_curate.sources.columns import Columns
from cit_curate.sources.embedded import embedded_uris, is_embedded, several_images
from cit_curate.sources.rows import ROWS_PER_BATCH, SourceReader, SourceRows
from cit_curate.sources.text.files import check_uncompressed

_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"
# The last bytes of a stream. One without them was cut, perhaps between two batches.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def open_arrow(path: Path, columns: Columns) -> SourceReader:
    """Open an Arrow file or stream; the errors are those of `open_arrow_files`.

    Raises:
        ConfigError: It is compressed as a whole.
    """
    check_uncompressed(path, "an Arrow file compresses its columns itself")
    return open_arrow_files([path], path, columns, is_dataset=False)


def open_arrow_files(
    files: Sequence[Path], where: Path, columns: Columns, *, is_dataset: bool
) -> SourceReader:
    """Open Arrow files that are one table. Image bytes are not copied.

    Args:
        files: The files.
        where: The table, for messages.
        columns: The columns to read.
        is_dataset: See `columns.with_image`.

    Raises:
        ConfigError: A chosen column is missing or holds no text.
        DamagedError: A file is damaged.
    """
    with _opened(files[0]) as reader:
        schema = reader.schema
    chosen = with_image(columns, schema, is_dataset=is_dataset).found_in(schema.names, where)
    chosen = check_types(where, chosen, schema)
    guessed = chosen.image != columns.image and not is_dataset
    return SourceReader(
        columns=chosen,
        extra_types={name: schema.field(name).type for name in chosen.extra},
        read=lambda: _read(files, chosen, schema),
        notes=(
            *several_note(columns, schema),
            *(image_note(chosen.image) if guessed else ()),
        ),
    )


def image_note(image: str | None) -> tuple[str, ...]:
    """A sentence for an image column that was guessed."""
    return (f"the images are those in the column {image!r} (--image says which)",)


def several_note(columns: Columns, schema: pa.Schema) -> tuple[str, ...]:
    """A sentence for columns of several images a row, none of which was chosen."""
    several = "" if columns.image else several_images(schema, None)
    return (f"{several} (its pairs have no image)",) if several else ()


def first_arrow_rows(files: Sequence[Path], num_rows: int) -> pa.RecordBatch:
    """The first rows of Arrow files that are one table, at most `num_rows`.

    Raises:
        DamagedError: A file is damaged.
    """
    with _opened(files[0]) as reader:
        schema = reader.schema
    batches = (batch for file in files for batch in _batches(file, schema) if batch.num_rows)
    empty = pa.RecordBatch.from_pylist([], schema=schema)
    return next(batches, empty).slice(0, num_rows)


def _read(files: Sequence[Path], columns: Columns, schema: pa.Schema) -> Iterator[SourceRows]:
    image = columns.image
    embedded = image if image and is_embedded(schema.field(image).type) else None
    record = 0
    for file in files:
        first = 0
        for batch in _batches(file, schema):
            uris = None
            if embedded:
                cells = batch.column(embedded)
                uris = embedded_uris(cells, "arrow", str(file), embedded, first)
            yield rows_of_batch(batch, columns, record, uris=uris)
            first += batch.num_rows
            record += batch.num_rows


def _batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of a file, validated, with at most `ROWS_PER_BATCH` rows each."""
    with _opened(path) as reader:
        if not reader.schema.equals(schema):
            raise ConfigError(
                f"{path} has the columns {_listed(reader.schema)}, the first file of its split has "
                f"{_listed(schema)}"
            )
        whole = _whole_batches(reader)
        while True:
            try:
                batch = next(whole, None)
                if batch is None:
                    return
                # The offsets in a damaged file may point outside its memory.
                batch.validate(full=True)
            except (pa.ArrowException, OSError) as error:
                raise damaged_source(path, error) from error
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield batch.slice(start, ROWS_PER_BATCH)


def _whole_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A reader of an Arrow file, or of a stream with a valid end."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_FILE))
            size = path.stat().st_size
            file.seek(max(size - len(_END_OF_STREAM), 0))
            if head.startswith(_FEATHER_1):
                raise ConfigError(
                    f"{path} is a Feather file of version 1, which is no Arrow file; write it as "
                    "Parquet, with pandas: pandas.read_feather(FILE).to_parquet(FILE)"
                )
            if head != _FILE and file.read() != _END_OF_STREAM:
                raise pa.ArrowInvalid("the end of the Arrow stream is missing")
        reader = open_ipc(str(path))
    except (pa.ArrowException, OSError) as error:
        raise damaged_source(path, error) from error
    with reader:
        yield reader


def damaged_source(path: Path, error: Exception) -> DamagedError:
    """The error for an Arrow or Parquet file that cannot be read."""
    size = path.stat().st_size
    return DamagedError(f"{path} ({size:,} bytes) is damaged or still being written: {error}")


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
