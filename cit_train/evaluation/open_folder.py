"""Open a folder of the user's own images, in any layout that a task may have."""

from dataclasses import replace
from pathlib import Path

from cit_curate.errors import ConfigError
from cit_train.evaluation.labels import attach, check_own_classes, name_by_list
from cit_train.evaluation.readers.file_list import FILE_LISTS, open_list_in
from cit_train.evaluation.readers.folder_layout import class_folders, holds_images
from cit_train.evaluation.readers.image_folder import ImageFolder
from cit_train.evaluation.readers.labelled_images import (
    DEFAULT_FLAGS,
    Flags,
    LabelledImages,
    SourceImages,
)
from cit_train.evaluation.readers.parquet_export import find_parquet, open_parquet_export
from cit_train.evaluation.readers.webdataset_export import find_shards, open_webdataset_export

__all__ = ["open_folder"]


def open_folder(
    root: Path, *, classes: Path | None = None, flags: Flags = DEFAULT_FLAGS
) -> LabelledImages:
    """List the images of a folder as a task of their own.

    The layouts are tried in this order: file list, class folders, WebDataset export, Parquet
    export.

    Args:
        root: The folder.
        classes: The class list, as in `name_labels`; None = the folder's own names.
        flags: The options, for messages.

    Raises:
        ConfigError: There is no such folder, it holds splits or a single class, or the class list
            does not match.
        BadInputError: There is no image, or an image without a label.
        DamagedError: A file is truncated.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist: there is no folder of that name"
        raise ConfigError(f"{flags.data} {root} {what}; give a folder with images of each class")
    source = _open_export(root, use_class_file=classes is None)
    if source is None:
        images = _with_unread_lists(ImageFolder.open(root, classes, flags=flags).labelled(), root)
        return check_own_classes(images, name=str(root), flags=flags)
    if classes is not None:
        source = name_by_list(source, classes, where=root, flags=flags)
    return attach(source, None, name=str(root), flags=flags)


def _open_export(root: Path, *, use_class_file: bool) -> SourceImages | None:
    """The images, unless class folders hold them."""
    listed = open_list_in(root, use_class_file=use_class_file)
    if listed is not None:
        return listed
    if any(holds_images(root / name) for name in class_folders(root)):
        return None
    if find_shards(root) is not None:
        return open_webdataset_export(root)
    return open_parquet_export(root) if find_parquet(root) else None


def _with_unread_lists(images: LabelledImages, root: Path) -> LabelledImages:
    unread = [name for name in FILE_LISTS if (root / name).is_file()]
    note = f"{', '.join(unread)} in {root} lists no images with labels, so the folders are classes"
    return replace(images, notes=(*images.notes, note)) if unread else images
