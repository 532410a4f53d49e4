"""Reader of Hugging Face datasets on disk: `save_to_disk` folders and snapshots of Parquet files.

Nothing is downloaded, and the `datasets` library is not needed: the files are Arrow and Parquet.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.sources.columns import Columns
from cit_curate.sources.embedded import embedded_columns, embedded_uris, is_embedded
from cit_curate.sources.parquet import (
    check_types,
    damaged_source,
    first_parquet_rows,
    open_parquet,
    parquet_schema,
    rows_of_batch,
)
from cit_curate.sources.rows import ROWS_PER_BATCH, SourceReader, SourceRows

# The last bytes of an Arrow IPC stream. A file without them was cut, perhaps between two batches.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def dataset_sources(path: Path) -> list[Path]:
    """The splits (folders) of a dataset folder, or else its Parquet files.

    Raises:
        ConfigError: The folder is no Hugging Face dataset.
        DamagedError: A JSON file that describes the dataset is damaged, or a split is missing.
    """
    if (path / "state.json").is_file():
        return [path]
    if (path / "dataset_dict.json").is_file():
        names = _json_object(path / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not all(_is_plain(name) for name in names):
            raise DamagedError(f"{path / 'dataset_dict.json'} lists no splits by name")
        for name in names:
            if not (path / name / "state.json").is_file():
                raise DamagedError(f"{path / name} holds no split; dataset_dict.json names it")
        return [path / name for name in names]
    files = sorted(file for file in path.glob("**/*.parquet") if not _is_hidden(file, path))
    if not files:
        raise ConfigError(
            f"{path} is no Hugging Face dataset: it has no state.json or dataset_dict.json of "
            "save_to_disk, and no *.parquet"
        )
    return files


def is_dataset(path: Path) -> bool:
    """True for a folder that `save_to_disk` made, or a snapshot with Parquet files in `data/`."""
    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return saved or any(path.glob("data/*.parquet"))


def open_huggingface(path: Path, columns: Columns) -> SourceReader:
    """Open a split folder of `save_to_disk`, or one Parquet file of a snapshot.

    Image bytes are not copied. Without `--image`, the image column is the only column of image
    bytes.

    Args:
        path: A path from `dataset_sources`.
        columns: The columns to read.

    Raises:
        ConfigError: A chosen column is missing or holds no text.
        DamagedError: A file is missing or damaged.
    """
    is_parquet = path.is_file()
    files = [] if is_parquet else _arrow_files(path)
    schema = parquet_schema(path) if is_parquet else _schema(files[0])
    columns = _with_image(columns, schema)
    if is_parquet:
        return open_parquet(path, columns)
    columns = columns.found_in(schema.names, path)
    columns = check_types(path, columns, schema)
    return SourceReader(
        columns=columns,
        extra_types={name: schema.field(name).type for name in columns.extra},
        read=lambda: _read(files, columns, schema),
    )


def first_rows(path: Path, num_rows: int) -> pa.RecordBatch:
    """The first rows of a split folder or a Parquet file, at most `num_rows`.

    Raises:
        DamagedError: A file is missing or damaged.
    """
    if path.is_file():
        return first_parquet_rows(path, num_rows)
    files = _arrow_files(path)
    schema = _schema(files[0])
    batches = (batch for file in files for batch in _batches(file, schema) if batch.num_rows)
    empty = pa.RecordBatch.from_pylist([], schema=schema)
    return next(batches, empty).slice(0, num_rows)


def _with_image(columns: Columns, schema: pa.Schema) -> Columns:
    """The columns; the image column, if none is chosen, is the only column of image bytes."""
    embedded = embedded_columns(schema)
    if columns.image or len(embedded) != 1:
        return columns
    return replace(columns, image=embedded[0])


def _read(files: list[Path], columns: Columns, schema: pa.Schema) -> Iterator[SourceRows]:
    image = columns.image
    embedded = image if image and is_embedded(schema.field(image).type) else None
    record = 0
    for file in files:
        first = 0
        for batch in _batches(file, schema):
            uris = None
            if embedded:
                uris = embedded_uris(batch.column(embedded), "arrow", str(file), embedded, first)
            yield rows_of_batch(batch, columns, record, uris=uris)
            first += batch.num_rows
            record += batch.num_rows


def _batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow IPC stream, validated, with at most `ROWS_PER_BATCH` rows each."""
    with _mapped(path) as reader:
        if not reader.schema.equals(schema):
            raise ConfigError(
                f"{path} has the columns {_listed(reader.schema)}, the first file of its split has "
                f"{_listed(schema)}"
            )
        while True:
            try:
                batch = reader.read_next_batch()
                # The offsets in a damaged file may point outside its memory.
                batch.validate(full=True)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise damaged_source(path, error) from error
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield batch.slice(start, ROWS_PER_BATCH)


def _schema(path: Path) -> pa.Schema:
    with _mapped(path) as reader:
        return reader.schema


def _mapped(path: Path) -> Any:
    """A reader of an Arrow IPC stream with a valid end; a context manager."""
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            stream.seek(max(size - len(_END_OF_STREAM), 0))
            if stream.read() != _END_OF_STREAM:
                raise pa.ArrowInvalid("the end of the Arrow stream is missing")
        return pa.ipc.open_stream(pa.memory_map(str(path)))
    except (pa.ArrowException, OSError) as error:
        raise damaged_source(path, error) from error


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a split, in the order of its `state.json`."""
    listed = _json_object(folder / "state.json").get("_data_files")
    entries = listed if isinstance(listed, list) else []
    names = [str(entry.get("filename")) for entry in entries if isinstance(entry, dict)]
    if not names or not all(map(_is_plain, names)):
        raise DamagedError(f"{folder / 'state.json'} names no data files in its own folder")
    files = [folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise DamagedError(f"{file} is missing; state.json names it")
    return files


def _json_object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path} is no JSON object")
    return value


def _is_plain(name: object) -> bool:
    """True for a plain file name: a dataset's JSON may not name paths outside its folder."""
    return isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
