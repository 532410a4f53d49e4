"""What files and folders are, by the names of files: which format, and which files are sources."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from cit_curate.config import SourceFormat
from cit_curate.errors import ConfigError
from cit_curate.images.suffixes import IMAGE_SUFFIXES
from cit_curate.sources.arrow.img2dataset import is_img2dataset
from cit_curate.sources.columns import peek_hint
from cit_curate.sources.folders.metadata import METADATA_NAMES, names_images
from cit_curate.sources.huggingface import is_dataset
from cit_curate.sources.parquet import parquet_schema
from cit_curate.sources.text.files import COMPRESSED_TEXT_SUFFIXES
from cit_curate.sources.webdataset import COMPRESSED_SUFFIXES

_BY_SUFFIX: dict[str, SourceFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".arrows", ".feather", ".ipc"), "arrow"),
    ".tar": "webdataset",
    **dict.fromkeys(COMPRESSED_SUFFIXES, "webdataset"),  # Opened only to be refused with a hint.
}
FILES_OF: Mapping[SourceFormat, str] = {
    "csv": "CSV",
    "tsv": "TSV",
    "json": "JSON",
    "jsonl": "JSON lines",
    "parquet": "Parquet",
    "arrow": "Arrow",
    "webdataset": "tar",
}
"""What files of each format are called."""

# Tables that `cit export` writes beside its shards.
_OF_SHARDS = ("rejects.parquet",)
# The file that makes a folder one of our pools, which is no source.
_POOL = "pool.json"
# JSON files that describe what lies beside them (`datasets`, img2dataset).
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "_stats.json")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_MAX_SHOWN = 3


def format_of_name(name: str) -> SourceFormat | None:
    """The format that a file's suffix tells, upper case and compressed ones too; None for none."""
    name = name.lower()
    if not name.endswith(COMPRESSED_SUFFIXES):
        for compressed in COMPRESSED_TEXT_SUFFIXES:
            name = name.removesuffix(compressed)
    return next((kind for suffix, kind in _BY_SUFFIX.items() if name.endswith(suffix)), None)


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder.

    Attributes:
        folder: The folder.
        by_format: The files of each format, in order of name.
        images: The images.
        texts: The `.txt` files.
        others: The files of no known format, and those whose names begin with `_`.
        num_links: Links to folders, which are not followed.
    """

    folder: Path
    by_format: dict[SourceFormat, list[Path]] = field(default_factory=dict)
    images: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    num_links: int = 0

    def chosen(self) -> SourceFormat:
        """The format of the files that are read.

        Raises:
            ConfigError: There are files of several formats; the message says how many of which.
            DamagedError: A Parquet file beside images is damaged.
        """
        found = dict(self.by_format)
        if self.images or self.num_links:
            found = {kind: self._not_of_images(files) for kind, files in found.items()}
        if self.texts or found.get("webdataset"):
            found.pop("json", None)
        if found.get("webdataset"):
            shards = {file.with_suffix("") for file in found["webdataset"]}
            found["parquet"] = [
                file
                for file in found.get("parquet", [])
                if file.with_suffix("") not in shards and file.name not in _OF_SHARDS
            ]
        found["parquet"] = [file for file in found.get("parquet", []) if not names_images(file)]
        found = {kind: files for kind, files in found.items() if files}
        if self.images and not found.keys() - {"parquet"}:
            # img2dataset's tables of the images beside them.
            schemas = map(parquet_schema, found.get("parquet", ()))
            if all(is_img2dataset(schema.names) for schema in schemas):
                return "folder"
        if len(found) + bool(self.images) > 1:
            raise ConfigError(self._mixed(found))
        return next(iter(found), "folder")

    def notes(self, kind: SourceFormat) -> tuple[str, ...]:
        """A sentence on what is not read when the files of one format are."""
        if kind == "folder":
            return ()
        read = self.by_format.get(kind, [])
        left = [file for files in self.by_format.values() for file in files if files is not read]
        left += [*self.images, *self.texts, *self.others]
        parts = (
            [f"{len(left):,} other {_plural('file', len(left))} ({_named(left)})"] if left else []
        )
        if self.num_links:
            what = _plural("link", self.num_links)
            parts.append(f"{self.num_links:,} {what} to folders")
        return (f"of {self.folder}, not read: {', '.join(parts)}",) if parts else ()

    def _not_of_images(self, files: Iterable[Path]) -> list[Path]:
        """The files that are no companions of the images."""
        stems = {file.with_suffix("") for file in self.images}
        return [
            file
            for file in files
            if (file.name not in METADATA_NAMES or file.suffix == ".parquet")
            and not (file.suffix.lower() == ".json" and file.with_suffix("") in stems)
        ]

    def _mixed(self, found: Mapping[SourceFormat, Sequence[Path]]) -> str:
        held = [
            f"{len(files):,} {FILES_OF[kind]} {_plural('file', len(files))} ({_named(files)})"
            for kind, files in found.items()
        ]
        formats = list(found)
        advice = ""
        if self.images:
            held.append(f"{len(self.images):,} {_plural('image', len(self.images))}")
            formats.append("folder")
            table = next(files[0] for files in found.values())
            advice = (
                f"; a table whose images lie here is read with: cit pool build {table} --image "
                f"COLUMN --image-root {self.folder}"
            )
        return (
            f"{self.folder} holds {', '.join(held)}: name the files to read, or say which with "
            f"--format {', '.join(formats[:-1])} or {formats[-1]}{advice}{peek_hint(self.folder)}"
        )


def files_below(folder: Path) -> FolderFiles:
    """The files below a folder, hidden ones left out; links to files count, those to folders not.

    Names that begin with `_` are files that Spark and Hive keep beside the data.
    """
    by_format: dict[SourceFormat, list[Path]] = {}
    images: list[Path] = []
    texts: list[Path] = []
    others: list[Path] = []
    num_links = 0
    for parent, below, names in os.walk(folder):
        if _POOL in names and Path(parent) != folder:
            below[:], names = [], []
        below[:] = sorted(name for name in below if not name.startswith("."))
        num_links += sum(Path(parent, name).is_symlink() for name in below)
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(parent, name)
            kind = format_of_name(name)
            if file.suffix.lower() in IMAGE_SUFFIXES:
                images.append(file)
            elif file.suffix.lower() == ".txt":
                texts.append(file)
            elif kind is None or name.startswith("_") or name.lower().endswith(_DESCRIPTIONS):
                others.append(file)
            else:
                by_format.setdefault(kind, []).append(file)
    ordered = {kind: sorted(files) for kind, files in sorted(by_format.items())}
    return FolderFiles(folder, ordered, images, texts, others, num_links)


def folder_format(folder: Path) -> tuple[SourceFormat, FolderFiles | None]:
    """The format of a folder, and its files unless it is a Hugging Face dataset.

    Raises:
        ConfigError: It holds files of several formats.
        DamagedError: A Parquet file beside images is damaged.
    """
    if is_dataset(folder):
        return "huggingface", None
    files = files_below(folder)
    return files.chosen(), files


def partitions_of(folder: Path, file: Path) -> tuple[tuple[str, str | None], ...]:
    """The columns that the names of folders give a file, as Hive writes them: `key=value`.

    Args:
        folder: The folder that was named; its own name counts too.
        file: A file below it.
    """
    parts = (folder.resolve().name, *file.relative_to(folder).parts[:-1])
    pairs = (part.partition("=") for part in parts if "=" in part)
    return tuple(
        (unquote(key), None if value == _NO_PARTITION else unquote(value))
        for key, _, value in pairs
        if key
    )


def _named(files: Sequence[Path]) -> str:
    names = [file.name for file in files[:_MAX_SHOWN]]
    return ", ".join([*names, "…"] if len(files) > _MAX_SHOWN else names)


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"
