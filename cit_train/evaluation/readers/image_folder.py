"""Reader of an image folder: one sub-folder of images for each class."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cit_curate.errors import BadInputError, ConfigError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.records import Int64
from cit_curate.sources.folder import IMAGE_SUFFIXES
from cit_train.evaluation.readers.class_list import NamedLabels, name_labels
from cit_train.evaluation.readers.class_names import some
from cit_train.evaluation.readers.folder_layout import (
    class_folders,
    refuse_other_layouts,
    shared_folders,
    walk_visible,
)
from cit_train.evaluation.readers.labelled_images import (
    DEFAULT_FLAGS,
    Flags,
    ImageFiles,
    LabelledImages,
    SourceImages,
)

__all__ = ["ImageFolder"]

# Pictures that are not read; a class folder of them would seem empty.
_OTHER_IMAGES = (
    frozenset(
        {".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm", ".svg", ".tga"}
        | {".jfif", ".jpe", ".pjpeg"}
    )
    - IMAGE_SUFFIXES
)
_READER = "image folder"


@dataclass(frozen=True)
class ImageFolder:
    """Labelled images, in the order of their folders and then of their paths.

    Attributes:
        root: The folder that was opened.
        folders: The sub-folders, sorted; numbered ones by their numbers.
        classes: The classes to choose from, also those of a class list that have no sub-folder.
        class_of: [folders], the position in `classes` of each sub-folder.
        paths: The images, chosen by their suffix; not opened yet.
        targets: int64 [paths], each image's position in `classes`.
        naming: How a class list was matched to the sub-folders; empty = they are the names.
        notes: Remarks that a person needs to interpret the result.
    """

    root: Path
    folders: tuple[str, ...]
    classes: tuple[MetadataEntry, ...]
    class_of: tuple[int, ...]
    paths: tuple[Path, ...]
    targets: Int64
    naming: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, root: Path, classes: Path | None = None, *, flags: Flags = DEFAULT_FLAGS
    ) -> "ImageFolder":
        """List a folder's images, also those in sub-folders of a class.

        Hidden files and linked folders below a class are left out, as in pools.

        Args:
            root: The folder with one sub-folder for each class.
            classes: The class list, as in `name_labels`. None = the names of the sub-folders.
            flags: The options, for messages.

        Raises:
            ConfigError: The folder, its sub-folders or the names are missing or do not match, or
                the sub-folders are splits and not classes.
            BadInputError: No sub-folder holds an image.
        """
        folders = _class_folders(root)
        refuse_other_layouts(root, flags)
        named = (
            NamedLabels(tuple(map(MetadataEntry, folders)), tuple(range(len(folders))), "")
            if classes is None
            else name_labels(folders, classes, where=root, flags=flags)
        )
        files = [list(walk_visible(root / folder)) for folder in folders]
        images = [[path for path in paths if _is_image(path)] for paths in files]
        counts = [len(paths) for paths in images]
        other_formats = _other_formats(itertools.chain.from_iterable(files))
        if not sum(counts):
            raise BadInputError(
                f"none of the {len(folders)} class folders in {root} holds an image; a name ends "
                f"with {', '.join(sorted(IMAGE_SUFFIXES))}{other_formats}"
            )
        return cls(
            root=root,
            folders=folders,
            classes=named.classes,
            class_of=named.positions,
            paths=tuple(itertools.chain.from_iterable(map(sorted, images))),
            targets=np.repeat(np.array(named.positions, dtype=np.int64), counts),
            naming=named.naming,
            notes=(*named.notes, *_notes(root, folders, counts, other_formats, flags)),
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
            naming=self.naming,
            notes=self.notes,
        )

    def labelled(self) -> LabelledImages:
        """The images as a task of their own, with the folder's classes."""
        labels = [entry.name for entry in self.classes]
        for folder, position in zip(self.folders, self.class_of, strict=True):
            labels[position] = folder
        return LabelledImages(
            reader=_READER,
            images=ImageFiles(self.paths),
            targets=self.targets,
            classes=self.classes,
            labels=tuple(labels),
            naming=self.naming,
            notes=self.notes,
        )


def _class_folders(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise ConfigError(f"there is no folder {root}; it holds one sub-folder of images per class")
    folders = class_folders(root)
    if not folders:
        files = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
        content = f"{len(files)} files, such as {files[0]}" if files else "nothing"
        raise ConfigError(
            f"{root} has no class folder but {content}; put images into CLASS/, or list them with "
            "their labels in a labels.csv beside them"
        )
    return folders


def _notes(
    root: Path, folders: tuple[str, ...], counts: list[int], other_formats: str, flags: Flags
) -> tuple[str, ...]:
    """What lies in the folder and is not evaluated."""
    notes = []
    empty = [folder for folder, count in zip(folders, counts, strict=True) if not count]
    if empty:
        holds, they = ("holds", "it is") if len(empty) == 1 else ("hold", "they are")
        notes.append(
            f"{len(empty)} of the {len(folders)} class folders {holds} no picture, and {they} a "
            f"choice all the same: {some(empty)}"
        )
    loose = sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_file() and not entry.name.startswith(".") and _is_image(Path(entry.name))
    )
    if loose:
        notes.append(
            f"{len(loose)} pictures lie in {root} itself and have no class, so they are left out: "
            f"{some(loose)}"
        )
    shared = shared_folders(root)
    if shared:
        notes.append(
            f"each class folder holds the same folders ({some(shared)}), and the pictures of all "
            f"are evaluated; if they are the classes, give {flags.data} {root / folders[0]}"
        )
    if other_formats:
        notes.append(f"pictures of other formats are left out{other_formats}")
    return tuple(notes)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _other_formats(files: Iterable[Path]) -> str:
    """How many pictures have a format that is not read, as the end of a message."""
    suffixes = Counter(path.suffix.lower() for path in files)
    other = [f"{suffixes[suffix]} {suffix}" for suffix in sorted(_OTHER_IMAGES & suffixes.keys())]
    return f"; not read are {', '.join(other)}" if other else ""
