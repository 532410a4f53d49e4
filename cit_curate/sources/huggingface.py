"""Reader of Hugging Face datasets on disk: `save_to_disk` folders and snapshots of Parquet files.

Nothing is downloaded, and the `datasets` library is not needed: the files are Arrow and Parquet.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.sources.arrow.ipc import first_arrow_rows, open_arrow_files
from cit_curate.sources.columns import Columns
from cit_curate.sources.folders.metadata import names_images
from cit_curate.sources.parquet import open_parquet
from cit_curate.sources.rows import SourceReader


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
    return saved or any(not names_images(file) for file in path.glob("data/*.parquet"))


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
    if path.is_file():
        return open_parquet(path, columns, is_dataset=True)
    return open_arrow_files(_arrow_files(path), path, columns, is_dataset=True)


def first_rows(path: Path, num_rows: int) -> pa.RecordBatch:
    """The first rows of a split folder, at most `num_rows`.

    Raises:
        DamagedError: A file is missing or damaged.
    """
    return first_arrow_rows(_arrow_files(path), num_rows)


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
