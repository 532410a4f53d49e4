"""Reader of an image folder: one sub-folder of images for each class."""

import csv
import io
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cit_curate.errors import BadInputError, ConfigError
from cit_curate.images.suffixes import IMAGE_SUFFIXES
from cit_curate.metadata.entries import MetadataEntry, parse_entries, read_utf8
from cit_curate.records import Int64
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
    """

    root: Path
    folders: tuple[str, ...]
    classes: tuple[MetadataEntry, ...]
    paths: tuple[Path, ...]
    targets: Int64

    @classmethod
    def open(cls, root: Path, classes: Path | None = None) -> "ImageFolder":
        """List a folder's images, also those in sub-folders of a class.

        Hidden files and linked folders below a class are left out, as in pools.

        Args:
            root: The folder with one sub-folder for each class.
            classes: The file of class names: a `.csv` with the columns `folder` and `class`, or
                a metadata file, whose n-th entry names the n-th sub-folder. None = the names of
                the sub-folders. Synonyms are separated by `|`.

        Raises:
            ConfigError: The folder, its sub-folders or the names are missing or do not match.
            BadInputError: No sub-folder holds an image.
        """
        folders = _class_folders(root)
        entries = _class_entries(root, folders, classes)
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
            classes=entries,
            paths=tuple(itertools.chain.from_iterable(images)),
            targets=np.repeat(np.arange(len(folders), dtype=np.int64), counts),
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
        )

    def labelled(self) -> LabelledImages:
        """The images as a task of their own, with the folder's classes."""
        return LabelledImages(
            reader=_READER,
            images=ImageFiles(self.paths),
            targets=self.targets,
            classes=self.classes,
            labels=self.folders,
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


def _class_entries(
    root: Path, folders: tuple[str, ...], classes: Path | None
) -> tuple[MetadataEntry, ...]:
    if classes is None:
        return tuple(MetadataEntry(folder) for folder in folders)
    if not classes.is_file():
        raise ConfigError(f"--classes: there is no file {classes}")
    if classes.suffix.lower() == ".csv":
        return _entries_by_folder(root, folders, classes)
    # Line by line: two classes may have one name (ImageNet's cranes), which must not be merged.
    lines = read_utf8(classes).splitlines()
    entries = tuple(entry for line in lines for entry in parse_entries([line]))
    if not entries:
        raise ConfigError(f"--classes: {classes} holds no class name; write one a line")
    if len(entries) != len(folders):
        raise ConfigError(
            f"--classes: {classes} names {len(entries)} classes, and {root} has {len(folders)} "
            f"class folders ({_some(folders)}); write one line for each folder in sorted order, "
            "or a .csv with the columns folder and class"
        )
    return entries


def _entries_by_folder(
    root: Path, folders: tuple[str, ...], classes: Path
) -> tuple[MetadataEntry, ...]:
    named: dict[str, MetadataEntry] = {}
    with io.StringIO(read_utf8(classes), newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if not set(_CLASS_COLUMNS) <= set(columns):
            raise ConfigError(
                f"--classes: {classes} needs the columns folder and class; "
                f"it has {', '.join(columns) or 'none'}"
            )
        for row in reader:
            folder = (row["folder"] or "").strip()
            entries = parse_entries([row["class"] or ""])
            if not folder or not entries or folder in named:
                wrong = "comes twice" if folder in named else "or its class is empty"
                raise ConfigError(
                    f"--classes: {classes}:{reader.line_num}: folder {folder!r} {wrong}"
                )
            named[folder] = entries[0]
    unnamed = [folder for folder in folders if folder not in named]
    missing = [folder for folder in named if folder not in folders]
    if unnamed or missing:
        raise ConfigError(
            f"--classes: {classes} names {len(named)} folders, and {root} has {len(folders)}; "
            f"without a name: {_some(unnamed)}; not in {root}: {_some(missing)}"
        )
    return tuple(named[folder] for folder in folders)


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
