"""From the paths on the command line to sources that can be read."""

import atexit
import difflib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import get_args

from braceexpand import braceexpand

from cit_curate.config import READ_AS_FOUND, Format, ReadConfig, SourceFormat, YfccFormat
from cit_curate.errors import ConfigError
from cit_curate.sources.arrow.ipc import open_arrow
from cit_curate.sources.columns import Columns, peek_hint
from cit_curate.sources.downloads import with_failed_downloads
from cit_curate.sources.embedded import embedded_columns
from cit_curate.sources.folders.contents import (
    FILES_OF,
    FolderFiles,
    files_below,
    folder_format,
    format_of_name,
    partitions_of,
)
from cit_curate.sources.folders.folder import open_folder
from cit_curate.sources.huggingface import dataset_sources, open_huggingface
from cit_curate.sources.parquet import open_parquet, parquet_schema
from cit_curate.sources.partitions import with_partitions
from cit_curate.sources.remote_sources import held_copies
from cit_curate.sources.rows import SourceReader, SourceRows
from cit_curate.sources.text.json_array import open_json
from cit_curate.sources.text.table import open_table
from cit_curate.sources.webdataset import open_webdataset
from cit_curate.sources.yfcc.source import YfccSource, open_yfcc
from cit_curate.storage.remote import remote_url
from cit_curate.storage.remote_cache import private_folder

_NOT_FROM_STORES = (".zip",)


@dataclass(frozen=True)
class Source:
    """One file, image folder or split of a dataset.

    Attributes:
        name: The source's name, unique in its pool.
        path: The absolute path.
        format: The format, which selects the reader.
        image_root: The absolute folder that image paths start from, or a URL as a path.
        url: The URL of a source in a store, of which `path` is the local copy; "" for a local one.
        root_url: The URL that image paths start from, if the images are in a store; else "".
        yfcc: The files of a YFCC100M source.
        reading: How to read it.
        partitions: The columns that its folders give it, `partitions_of`.
        notes: A sentence on what was found beside it, see `SourceReader.notes`.
    """

    name: str
    path: Path
    format: SourceFormat | YfccFormat
    image_root: Path
    url: str = ""
    root_url: str = ""
    yfcc: YfccSource | None = None
    reading: ReadConfig = READ_AS_FOUND
    partitions: tuple[tuple[str, str | None], ...] = ()
    notes: tuple[str, ...] = ()


def find_sources(
    paths: Sequence[Path],
    *,
    format: Format = "auto",
    image_root: Path | None = None,
    reading: ReadConfig = READ_AS_FOUND,
) -> list[Source]:
    """The sources of some paths; each tar or table below a folder is one source.

    Args:
        paths: Files and folders, in the order of the pool. A pattern such as `{000..123}.tar`
            stands for the files that it expands to, unless a file has that name.
        format: `auto` goes by a file's suffix. A folder is a Hugging Face dataset if
            `save_to_disk` made it or it has `data/*.parquet`; else it holds, at any depth, tars or
            tables of one format, or images. Of a folder, another format reads its files alone.
        image_root: The folder that image paths start from and must stay inside; default the
            table's own folder, or the image folder. The images of a WebDataset are always in its
            tars.
        reading: How to read the sources.

    Raises:
        ConfigError: A path is missing or of no known format, a folder holds several formats, or
            the image root is no folder.
        DamagedError: A JSON file of a Hugging Face dataset, or a linked Parquet file, is damaged.
    """
    if not paths:
        raise ConfigError(
            "name at least one source: a .csv, .tsv, .json, .jsonl, .parquet, .arrow or .tar file, "
            "or a folder"
        )
    root_url = None if image_root is None else remote_url(image_root)
    if image_root is not None and root_url is None and not image_root.is_dir():
        raise ConfigError(f"the image root {image_root} is not a folder")
    sources: list[Source] = []
    names: set[str] = set()
    held: dict[Path, str] = {}
    for path in chain.from_iterable(_expanded_here(path, held) for path in paths):
        for found in _found_at(path, format):
            file, kind = found.path, found.format
            relative = file.relative_to(path).as_posix()
            plain = file.name if file == path else f"{path.resolve().name}/{relative}"
            plain = plain or file.resolve().name
            name, number = plain, 2
            while name in names:
                name, number = f"{plain}#{number}", number + 1
            names.add(name)
            url = held.get(file, "")
            if image_root is None or kind == "webdataset":
                root, own_url = _own_root(file, kind).resolve(), url.rpartition("/")[0]
            else:
                root = image_root.resolve() if root_url is None else image_root
                own_url = root_url or ""
            sources.append(
                replace(
                    found,
                    name=name,
                    path=file.resolve(),
                    image_root=root,
                    url=url,
                    root_url=own_url,
                    reading=reading,
                )
            )
    return sources


def yfcc_source(files: YfccSource) -> Source:
    """The metadata of YFCC100M as the source of a pool."""
    path = files.metadata.resolve()
    root = (files.image_root or path.parent).resolve()
    return Source(path.name, path, files.format, root, yfcc=files)


def open_source(source: Source, columns: Columns) -> SourceReader:
    """Open a source of any format; the errors are those of its reader.

    The reader gives the extra columns by their names in the pool.
    """
    open_reader, partitions = READERS[source.format], dict(source.partitions)
    if partitions.keys() & set(columns.extra):
        reader = with_partitions(lambda own: open_reader(source, own), columns, partitions)
    else:
        reader = open_reader(source, columns)
    names = columns.stored_names
    if reader.read is None or not columns.extra_names:
        return reader
    read = reader.read

    def renamed() -> Iterator[SourceRows]:
        for rows in read():
            yield replace(rows, extra={names[name]: cells for name, cells in rows.extra.items()})

    types = {names[name]: kind for name, kind in reader.extra_types.items()}
    return replace(reader, extra_types=types, read=renamed)


def _open_folder(source: Source, columns: Columns) -> SourceReader:
    # What is in a store has no links that lead outside.
    root = None if source.root_url else source.image_root
    reader = open_folder(source.path, columns, root=root, reading=source.reading)
    return with_failed_downloads(reader, source.path)


def _open_yfcc(source: Source, columns: Columns) -> SourceReader:
    if source.yfcc is None:
        raise ConfigError(f"{source.path}: YFCC100M is named by --metadata, not as a source")
    return open_yfcc(source.yfcc)


READERS: Mapping[str, Callable[[Source, Columns], SourceReader]] = {
    "csv": lambda source, columns: open_table(source.path, columns, "csv", source.reading),
    "tsv": lambda source, columns: open_table(source.path, columns, "tsv", source.reading),
    "json": lambda source, columns: open_json(
        source.path, columns, "json", source.reading.encoding
    ),
    "jsonl": lambda source, columns: open_json(
        source.path, columns, "jsonl", source.reading.encoding
    ),
    "parquet": lambda source, columns: open_parquet(source.path, columns),
    "arrow": lambda source, columns: open_arrow(source.path, columns),
    "webdataset": lambda source, columns: open_webdataset(
        source.path, columns, source.reading.encoding
    ),
    "huggingface": lambda source, columns: open_huggingface(source.path, columns),
    "folder": _open_folder,
    "yfcc15m": _open_yfcc,
    "yfcc100m": _open_yfcc,
}
"""The function that opens a source of each format."""


def _own_root(file: Path, kind: SourceFormat | YfccFormat) -> Path:
    """The folder that a source's image paths start from by default.

    For a link this is the link's own folder, unless the file itself holds the images. Images are
    never read through a link that leads out of the root, and every link in the hub's cache does.
    """
    if file.is_dir():
        return file
    holds_images = kind in ("webdataset", "huggingface") or (
        kind == "parquet" and file.is_symlink() and bool(embedded_columns(parquet_schema(file)))
    )
    return (file.resolve() if holds_images else file).parent


def _expanded_here(path: Path, held: dict[Path, str]) -> list[Path]:
    """As `_expanded`; files in a store are fetched, and their URLs are added to `held`."""
    url = remote_url(path)
    if url is None:
        return _expanded(path)
    if url.endswith(_NOT_FROM_STORES):
        raise ConfigError(f"{url}: a zip is no source; name a table whose images are its members")
    # Kept until the process ends: a pool is built from the files as they were when found.
    folder = private_folder("sources")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copies = held_copies([url], folder)
    held.update((link, file.url) for file, link in copies)
    return [link for _, link in copies]


def _expanded(path: Path) -> list[Path]:
    """A path, or the paths of its brace pattern when there is no such file."""
    if "{" not in path.as_posix() or path.exists():
        return [path]
    # The other forms of WebDataset URLs (pipe:, http:) are not supported.
    return [Path(text) for text in braceexpand(path.as_posix())]


def _found_at(path: Path, format: Format) -> Iterator[Source]:
    """The sources at one path; `find_sources` fills in what does not depend on it alone."""
    kind, below = _format_of(path, format)
    files, notes = [path], below.notes(kind) if below else ()
    if path.is_dir() and kind == "huggingface":
        files = dataset_sources(path)
    elif path.is_dir() and kind != "folder":
        files = below.by_format.get(kind, []) if below else []
        if not files:
            raise ConfigError(f"{path} holds no {FILES_OF[kind]} file{peek_hint(path)}")
    for number, file in enumerate(files):
        partitions = () if file == path else partitions_of(path, file)
        yield Source("", file, kind, path, partitions=partitions, notes=() if number else notes)


def _format_of(path: Path, format: Format) -> tuple[SourceFormat, FolderFiles | None]:
    """The format of a path; and the files below it, for a folder that is no dataset."""
    if not path.exists():
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; did you mean {path.with_name(close[0])}?" if close else ""
        raise ConfigError(f"the source {path} does not exist{hint}")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"the source {path} may not be read by this user")
    if path.is_dir():
        if format == "auto":
            return folder_format(path)
        return format, None if format in ("folder", "huggingface") else files_below(path)
    if format == "folder":
        raise ConfigError(f"{path} is a file, which --format folder does not read")
    return _file_format(path) if format == "auto" else format, None


def _file_format(path: Path) -> SourceFormat:
    kind = format_of_name(path.name)
    if kind is not None:
        return kind
    if path.name.lower().endswith(".zip"):
        raise ConfigError(
            f"{path} is a zip; unpack it, or name a table whose image column says which member is "
            "whose, as zip://PATH.zip#MEMBER"
        )
    raise ConfigError(
        f"{path}: its suffix is of no known format; say which with --format "
        f"{', '.join(get_args(SourceFormat)[:-1])} or {get_args(SourceFormat)[-1]}{peek_hint(path)}"
    )
