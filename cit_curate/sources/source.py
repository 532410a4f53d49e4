"""From what a person names on the command line to sources that can be read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cit_curate.errors import ConfigError
from cit_curate.sources.columns import Columns
from cit_curate.sources.folder import open_folder
from cit_curate.sources.parquet import open_parquet
from cit_curate.sources.rows import SourceReader
from cit_curate.sources.table import open_table

Format = Literal["auto", "csv", "tsv", "parquet", "folder"]

_BY_SUFFIX: dict[str, Literal["csv", "tsv", "parquet"]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Source:
    """One file or image folder.

    Attributes:
        name: Its name in the pool, unique there.
        path: Absolute.
        format: How it is read.
        image_root: Absolute folder that its image paths start from.
    """

    name: str
    path: Path
    format: Literal["csv", "tsv", "parquet", "folder"]
    image_root: Path


def find_sources(
    paths: Sequence[Path], *, format: Format = "auto", image_root: Path | None = None
) -> list[Source]:
    """The sources that paths stand for; a folder of Parquet files is one source per file, by name.

    Args:
        paths: Files and folders, in the order that the pool will have.
        format: `auto` goes by the suffix; a folder is Parquet if it holds `*.parquet`, else images.
        image_root: Where image paths start; default the table's own folder, or the image folder.

    Raises:
        ConfigError: A path is missing or of no known format, or the image root is no folder.
    """
    if not paths:
        raise ConfigError("name at least one source: a .csv, .tsv or .parquet file, or a folder")
    if image_root is not None and not image_root.is_dir():
        raise ConfigError(f"the image root {image_root} is not a folder")
    sources: list[Source] = []
    names: set[str] = set()
    for path in paths:
        kind = _format_of(path, format)
        files = sorted(path.glob("*.parquet")) if kind == "parquet" and path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path} holds no *.parquet file")
        for file in files:
            plain = file.name if file == path else f"{path.resolve().name}/{file.name}"
            plain = plain or file.resolve().name
            name, number = plain, 2
            while name in names:
                name, number = f"{plain}#{number}", number + 1
            names.add(name)
            own_root = file if kind == "folder" else file.parent
            root = own_root if image_root is None or kind == "folder" else image_root
            sources.append(Source(name, file.resolve(), kind, root.resolve()))
    return sources


def open_source(source: Source, columns: Columns) -> SourceReader:
    """Open a source of any format; what `open_table`, `open_parquet` and `open_folder` raise."""
    if source.format == "folder":
        if columns.extra:
            raise ConfigError(f"{source.path} is a folder of images; it has no columns for --extra")
        return open_folder(source.path)
    if source.format == "parquet":
        return open_parquet(source.path, columns)
    return open_table(source.path, columns, source.format)


def _format_of(path: Path, format: Format) -> Literal["csv", "tsv", "parquet", "folder"]:
    if not path.exists():
        raise ConfigError(f"the source {path} does not exist")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"the source {path} may not be read by this user")
    if format == "auto":
        if path.is_dir():
            return "parquet" if any(path.glob("*.parquet")) else "folder"
        if path.suffix.lower() in _BY_SUFFIX:
            return _BY_SUFFIX[path.suffix.lower()]
        raise ConfigError(
            f"{path}: its suffix tells no format; give --format csv, tsv, parquet or folder"
        )
    if path.is_dir() != (format == "folder") and not (path.is_dir() and format == "parquet"):
        what = "a folder" if path.is_dir() else "a file"
        raise ConfigError(f"{path} is {what}, which --format {format} does not read")
    return format
