"""From the paths on the command line to sources that can be read."""

import atexit
import difflib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from braceexpand import braceexpand

from cit_curate.config import READ_AS_FOUND, Format, ReadConfig, SourceFormat, YfccFormat
from cit_curate.errors import ConfigError
from cit_curate.sources.columns import Columns
from cit_curate.sources.embedded import embedded_columns
from cit_curate.sources.folders.folder import open_folder
from cit_curate.sources.folders.metadata import names_images
from cit_curate.sources.huggingface import dataset_sources, is_dataset, open_huggingface
from cit_curate.sources.parquet import open_parquet, parquet_schema
from cit_curate.sources.remote_sources import held_copies
from cit_curate.sources.rows import SourceReader, SourceRows
from cit_curate.sources.text.files import COMPRESSED_TEXT_SUFFIXES
from cit_curate.sources.text.jsonl import open_jsonl
from cit_curate.sources.text.table import open_table
from cit_curate.sources.webdataset import COMPRESSED_SUFFIXES, open_webdataset
from cit_curate.sources.yfcc.source import YfccSource, open_yfcc
from cit_curate.storage.remote import remote_url
from cit_curate.storage.remote_cache import private_folder

_BY_SUFFIX: dict[str, SourceFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
    **dict.fromkeys(COMPRESSED_SUFFIXES, "webdataset"),  # Opened only to be refused with a hint.
}
_NOT_FROM_STORES = (".zip",)
_READ_FROM_FOLDERS = ("folder", "parquet", "webdataset", "huggingface")


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
    """

    name: str
    path: Path
    format: SourceFormat | YfccFormat
    image_root: Path
    url: str = ""
    root_url: str = ""
    yfcc: YfccSource | None = None
    reading: ReadConfig = READ_AS_FOUND


def find_sources(
    paths: Sequence[Path],
    *,
    format: Format = "auto",
    image_root: Path | None = None,
    reading: ReadConfig = READ_AS_FOUND,
) -> list[Source]:
    """The sources of some paths; each file in a folder of tars or Parquet files is one source.

    Args:
        paths: Files and folders, in the order of the pool. A pattern such as `{000..123}.tar`
            stands for the files that it expands to, unless a file has that name.
        format: `auto` goes by a file's suffix. A folder is a Hugging Face dataset if
            `save_to_disk` made it or it has `data/*.parquet`, a WebDataset if it holds tars,
            Parquet if it holds `*.parquet`, else images.
        image_root: The folder that image paths start from and must stay inside; default the
            table's own folder, or the image folder. The images of a WebDataset are always in its
            tars.
        reading: How to read the sources.

    Raises:
        ConfigError: A path is missing or of no known format, or the image root is no folder.
        DamagedError: A JSON file of a Hugging Face dataset, or a linked Parquet file, is damaged.
    """
    if not paths:
        raise ConfigError(
            "name at least one source: a .csv, .tsv, .jsonl, .parquet or .tar file, or a folder"
        )
    root_url = None if image_root is None else remote_url(image_root)
    if image_root is not None and root_url is None and not image_root.is_dir():
        raise ConfigError(f"the image root {image_root} is not a folder")
    sources: list[Source] = []
    names: set[str] = set()
    held: dict[Path, str] = {}
    for path in chain.from_iterable(_expanded_here(path, held) for path in paths):
        kind = _format_of(path, format)
        for file in _files(path, kind):
            relative = file.relative_to(path).as_posix()
            plain = file.name if file == path else f"{path.resolve().name}/{relative}"
            plain = plain or file.resolve().name
            name, number = plain, 2
            while name in names:
                name, number = f"{plain}#{number}", number + 1
            names.add(name)
            is_own = image_root is None or kind == "webdataset"
            if is_own or image_root is None:
                url = held.get(file, "")
                root = _own_root(file, kind).resolve()
                own_url = url.rpartition("/")[0]
                sources.append(
                    Source(name, file.resolve(), kind, root, url, own_url, reading=reading)
                )
            else:
                root = image_root.resolve() if root_url is None else image_root
                url = held.get(file, "")
                sources.append(
                    Source(name, file.resolve(), kind, root, url, root_url or "", reading=reading)
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
    reader = READERS[source.format](source, columns)
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
    return open_folder(source.path, columns, root=root, reading=source.reading)


def _open_yfcc(source: Source, columns: Columns) -> SourceReader:
    if source.yfcc is None:
        raise ConfigError(f"{source.path}: YFCC100M is named by --metadata, not as a source")
    return open_yfcc(source.yfcc)


READERS: Mapping[str, Callable[[Source, Columns], SourceReader]] = {
    "csv": lambda source, columns: open_table(source.path, columns, "csv", source.reading),
    "tsv": lambda source, columns: open_table(source.path, columns, "tsv", source.reading),
    "jsonl": lambda source, columns: open_jsonl(source.path, columns, source.reading.encoding),
    "parquet": lambda source, columns: open_parquet(source.path, columns),
    "webdataset": lambda source, columns: open_webdataset(
        source.path, columns, source.reading.encoding
    ),
    "huggingface": lambda source, columns: open_huggingface(source.path, columns),
    "folder": _open_folder,
    "yfcc15m": _open_yfcc,
    "yfcc100m": _open_yfcc,
}
"""The function that opens a source of each format."""


def _own_root(file: Path, kind: SourceFormat) -> Path:
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


def _files(path: Path, kind: SourceFormat) -> list[Path]:
    """The source files of one path, whose format is known."""
    if kind == "huggingface" and path.is_dir():
        return dataset_sources(path)
    if kind not in ("parquet", "webdataset") or not path.is_dir():
        return [path]
    pattern = "*.parquet" if kind == "parquet" else "*.tar"
    files = sorted(path.glob(pattern)) or (_compressed_tars(path) if kind == "webdataset" else [])
    if not files:
        raise ConfigError(f"{path} holds no {pattern} file")
    return files


def _compressed_tars(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.t*") if file.name.endswith(COMPRESSED_SUFFIXES))


def _format_of(path: Path, format: Format) -> SourceFormat:
    if not path.exists():
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; did you mean {path.with_name(close[0])}?" if close else ""
        raise ConfigError(f"the source {path} does not exist{hint}")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"the source {path} may not be read by this user")
    if format == "auto":
        return _folder_format(path) if path.is_dir() else _file_format(path)
    if path.is_dir() != (format == "folder") and not (
        path.is_dir() and format in _READ_FROM_FOLDERS
    ):
        what = "a folder" if path.is_dir() else "a file"
        raise ConfigError(f"{path} is {what}, which --format {format} does not read")
    return format


def _folder_format(path: Path) -> SourceFormat:
    if is_dataset(path):
        return "huggingface"
    if any(path.glob("*.tar")) or _compressed_tars(path):
        return "webdataset"
    parquet = path.glob("*.parquet")
    return "parquet" if any(not names_images(file) for file in parquet) else "folder"


def _file_format(path: Path) -> SourceFormat:
    name = path.name.lower()
    for compressed in COMPRESSED_TEXT_SUFFIXES:
        if name.endswith(compressed) and not name.endswith(COMPRESSED_SUFFIXES):
            name = name.removesuffix(compressed)
    for suffix, kind in _BY_SUFFIX.items():
        if name.endswith(suffix):
            return kind
    if name.endswith(".zip"):
        raise ConfigError(
            f"{path} is a zip; name a table whose image column says which member is whose, as "
            "zip://PATH.zip#MEMBER"
        )
    raise ConfigError(
        f"{path}: its suffix is of no known format; use --format csv, tsv, jsonl, parquet, "
        "webdataset, huggingface or folder"
    )
