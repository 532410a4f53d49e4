"""Reader of an image folder: one sub-folder of images for each class."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cit_curate.errors import BadInputError, ConfigError
from cit_curate.metadata.class_files.formats import text_of
from cit_curate.metadata.class_files.read import read_class_file
from cit_curate.metadata.class_files.table_names import TABLE_SUFFIXES, ClassTable, read_table
from cit_curate.metadata.class_list import ClassList
from cit_curate.metadata.entries import MetadataEntry, parse_entries
from cit_curate.records import Int64
from cit_curate.sources.folder import IMAGE_SUFFIXES
from cit_train.evaluation.readers.labelled_images import ImageFiles, LabelledImages, SourceImages

__all__ = ["ImageFolder", "images_below"]

_CLASS_COLUMNS = ("folder", "class")
_READER = "image folder"


@dataclass(frozen=True)
class ImageFolder:
    """Labelled images, in the order of their folders and then of their paths.

    Attributes:
        root: The folder that was opened.
        folders: The sub-folder of each class, sorted.
        classes: The name of each class.
        paths: The images, chosen by their suffix; not opened yet.
        targets: int64 [paths], each image's position in `classes`.
        notes: What the file of class names holds; empty without one.
    """

    root: Path
    folders: tuple[str, ...]
    classes: tuple[MetadataEntry, ...]
    paths: tuple[Path, ...]
    targets: Int64
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, root: Path, classes: Path | None = None) -> "ImageFolder":
        """List a folder's images, also those in sub-folders of a class.

        Hidden files and linked folders below a class are left out, as in pools.

        Args:
            root: The folder with one sub-folder for each class.
            classes: The file of class names: a table with the columns `folder` and `class`, or
                what `--metadata` takes, whose n-th entry names the n-th sub-folder. None = the
                names of the sub-folders. Synonyms are separated by `|`.

        Raises:
            ConfigError: The folder, its sub-folders or the names are missing or do not match.
            BadInputError: No sub-folder holds an image.
        """
        folders = _class_folders(root)
        named = _class_names(root, folders, classes) if classes is not None else None
        images = [images_below(root / folder) for folder in folders]
        counts = [len(paths) for paths in images]
        if not sum(counts):
            raise BadInputError(
                f"none of the {len(folders)} class folders in {root} holds an image; "
                f"a name ends with {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return cls(
            root=root,
            folders=folders,
            classes=named.entries if named else tuple(map(MetadataEntry, folders)),
            paths=tuple(itertools.chain.from_iterable(images)),
            targets=np.repeat(np.arange(len(folders), dtype=np.int64), counts),
            notes=named.lines if named else (),
        )

    def source_images(self, *, prompts: tuple[str, ...] = ()) -> SourceImages:
        """The images with the folder's labels, which may be matched to a built-in task."""
        return SourceImages(
            reader=_READER,
            images=ImageFiles(self.paths),
            labels=self.targets,
            names=self.classes,
            names_are_readable=False,
            prompts=prompts,
            notes=self.notes,
        )

    def labelled(self) -> LabelledImages:
        """The images as a task of their own, with the folder's classes."""
        return LabelledImages(
            reader=_READER,
            images=ImageFiles(self.paths),
            targets=self.targets,
            classes=self.classes,
            labels=self.folders,
            notes=self.notes,
        )


def _class_folders(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise ConfigError(f"there is no folder {root}; it holds one sub-folder of images per class")
    visible = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    folders = tuple(name for name in visible if (root / name).is_dir())
    if not folders:
        content = f"{len(visible)} files, such as {visible[0]}" if visible else "nothing"
        raise ConfigError(f"{root} has no class folder but {content}; put images into CLASS/")
    return folders


def _class_names(root: Path, folders: tuple[str, ...], classes: Path) -> ClassList:
    """The class of each folder; two may have one name (ImageNet's cranes) and stay apart."""
    if not classes.is_file():
        raise ConfigError(f"--classes: there is no file {classes}")
    if classes.suffix.lower() in TABLE_SUFFIXES:
        table = read_table(text_of(classes), classes, _CLASS_COLUMNS)
        if len(table.header) != 1:
            return _names_by_folder(root, folders, table)
    named = read_class_file(classes, flag="")
    if len(named.entries) != len(folders):
        raise ConfigError(
            f"--classes: {classes} names {len(named.entries)} classes, and {root} has "
            f"{len(folders)} class folders ({_some(folders)}); write one line for each folder in "
            "sorted order, or a .csv with the columns folder and class"
        )
    return named


def _names_by_folder(root: Path, folders: tuple[str, ...], table: ClassTable) -> ClassList:
    classes = table.path
    if not {*_CLASS_COLUMNS} <= {*table.header}:
        raise ConfigError(
            f"--classes: {classes} needs the columns folder and class; it has {table.named_columns}"
        )
    named: dict[str, MetadataEntry] = {}
    cells = (table.column(column, flag="--classes") for column in _CLASS_COLUMNS)
    for (line, folder), (_, text) in zip(*cells, strict=True):
        entries = parse_entries([text], comments=False)
        if not folder or not entries or folder in named:
            wrong = "comes twice" if folder in named else "or its class is empty"
            raise ConfigError(f"--classes: {classes}:{line}: folder {folder!r} {wrong}")
        named[folder] = entries[0]
    unnamed = [folder for folder in folders if folder not in named]
    missing = [folder for folder in named if folder not in folders]
    if unnamed or missing:
        raise ConfigError(
            f"--classes: {classes} names {len(named)} folders, and {root} has {len(folders)}; "
            f"without a name: {_some(unnamed)}; not in {root}: {_some(missing)}"
        )
    return ClassList(name=str(classes), entries=tuple(named[folder] for folder in folders))


def images_below(folder: Path) -> list[Path]:
    """The picture files below a folder, sorted, without hidden files and linked folders."""
    files: list[Path] = []
    for parent, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        files.extend(
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        )
    return sorted(files)


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown}, …" if len(names) > 5 else shown
