"""Find a task's data below a root folder, in any supported layout."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from cit_curate.encodings import read_text
from cit_curate.errors import ConfigError
from cit_curate.metadata.tasks import TASK_NAMES, Task, load_task
from cit_train.evaluation.labels import attach, name_by_list
from cit_train.evaluation.readers.cifar_binary import CIFAR_VERSIONS, open_cifar_binary
from cit_train.evaluation.readers.file_list import open_list_in
from cit_train.evaluation.readers.folder_layout import find_splits
from cit_train.evaluation.readers.image_folder import ImageFolder
from cit_train.evaluation.readers.labelled_images import (
    DEFAULT_FLAGS,
    Flags,
    LabelledImages,
    SourceImages,
)
from cit_train.evaluation.readers.parquet_export import find_parquet, open_parquet_export
from cit_train.evaluation.readers.torchvision_sets import TORCHVISION_SETS, open_torchvision_set
from cit_train.evaluation.readers.webdataset_export import find_shards, open_webdataset_export

__all__ = ["NoDataError", "open_task", "task_folder", "task_names"]

# CLIP benchmark's names of the tasks, where they differ; `wds_` and `vtab-` may precede any name.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cub200": ("cub",),
        "aircraft": ("fgvc_aircraft",),
        "kitti_distance": ("kitti_closest_vehicle_distance",),
        "patch_camelyon": ("pcam",),
        "ucf101_frames": ("ucf101",),
        "kinetics700_frames": ("kinetics700",),
        "clevr_counts": ("clevr_count_all",),
        "rendered_sst2": ("renderedsst2",),
        "imagenet": ("imagenet1k",),
    }
)
_PREFIXES = ("", "wds_", "vtab-", "wds_vtab-")
_SPLITS = ("test", "val", "validation")
_PROMPTS = "prompts.txt"
_CLASS_FILES = ("classes.csv", "classes.txt")


class NoDataError(ConfigError):
    """There is no data of the task below the root."""


def task_names(tasks: str, root: Path) -> tuple[str, ...]:
    """The tasks that `--tasks` requests: `all`, `mt`, or names separated by commas.

    `mt` is the multi-task setting, whose 26 tasks are those of `all`. A name that is not a built-in
    task is a folder below the root.

    Raises:
        ConfigError: A name is neither; the message has the nearest spelling.
    """
    names: list[str] = []
    for name in filter(None, (part.strip() for part in tasks.split(","))):
        names += TASK_NAMES if name in ("all", "mt") else (name,)
    for name in names:
        if name not in TASK_NAMES and not _is_own_folder(root, name):
            close = difflib.get_close_matches(name, (*TASK_NAMES, "all", "mt"), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"--tasks: {name!r} is neither a built-in task nor a folder in {root}{hint}"
            )
    if not names:
        raise ConfigError("--tasks is empty; give all, mt, or names such as imagenet,cifar10")
    return tuple(dict.fromkeys(names))


def task_folder(root: Path, name: str) -> Path | None:
    """The folder of a task below the root, under any of its names; None = no folder."""
    for other in (name, *_OTHER_NAMES.get(name, ())):
        for prefix in _PREFIXES:
            folder = root / f"{prefix}{other}"
            if folder.is_dir():
                return folder
    return None


def open_task(
    name: str, root: Path, *, classes: Path | None = None, flags: Flags = DEFAULT_FLAGS
) -> LabelledImages:
    """List the images of a task with the reader of their layout.

    The layouts are tried in this order: WebDataset export, file list, Parquet export, CIFAR's
    binary files, torchvision's layout, image folder.

    Args:
        name: The name of a built-in task, or of a folder below the root.
        root: The parent of the tasks' folders.
        classes: The class list, as in `name_labels`; None = the names in the data.
        flags: The options, for messages.

    Raises:
        NoDataError: The task has no data below the root; the message says how to get it.
        ConfigError: The labels or the classes do not fit the task.
        BadInputError: There is no image, or an image without a label.
        DamagedError: A file is truncated.
    """
    task = load_task(name) if name in TASK_NAMES else None
    folder = task_folder(root, name)
    source = _open(name, root, folder, classes, flags)
    if source is not None and classes is not None and not source.naming:
        source = name_by_list(source, classes, where=folder or root, flags=flags)
    images = None if source is None else attach(source, task, name=name, flags=flags)
    if images is None or not len(images.targets):
        raise _no_data(name, root, folder, task)
    return images


def _open(
    name: str, root: Path, folder: Path | None, classes: Path | None, flags: Flags
) -> SourceImages | None:
    if folder is not None:
        if find_shards(folder) is not None:
            return open_webdataset_export(folder)
        for split in (folder, *(folder / name for name in _SPLITS)):
            listed = open_list_in(split)
            if listed is not None:
                return listed
        if find_parquet(folder):
            return open_parquet_export(folder)
    # torchvision's root may be the parent of all tasks, or the task's own folder.
    for parent in (root, *([folder] if folder is not None else [])):
        cifar = open_cifar_binary(name, parent) if name in CIFAR_VERSIONS else None
        if cifar is not None:
            return cifar
        if name in TORCHVISION_SETS and TORCHVISION_SETS[name].is_below(parent):
            return open_torchvision_set(name, parent)
    return _open_folder(folder, classes, flags) if folder is not None else None


def _open_folder(folder: Path, classes: Path | None, flags: Flags) -> SourceImages | None:
    if not _has_folders(folder):
        return None
    splits = [folder / split for split in _SPLITS if _has_folders(folder / split)]
    splits += _other_splits(folder) if not splits else []
    images = splits[0] if splits else folder
    if classes is None:
        class_files = [parent / name for parent in (images, folder) for name in _CLASS_FILES]
        classes = next((path for path in class_files if path.is_file()), None)
    opened = ImageFolder.open(images, classes, flags=flags)
    source = opened.source_images(prompts=_own_prompts(folder))
    if images == folder:
        return source
    split = images.relative_to(folder)
    return replace(source, notes=(*source.notes, f"the split {split}"))


def _other_splits(folder: Path) -> list[Path]:
    """The class folders of splits by other names (`Val`, `valid`, `test_set`), test first."""
    splits = [split for split in find_splits(folder) if split.content == "class folders"]
    return [split.path for kind in ("test", "val") for split in splits if split.kind == kind]


def _own_prompts(folder: Path) -> tuple[str, ...]:
    """The prompts of `prompts.txt`, one a line.

    Raises:
        ConfigError: A line has no `{}` for the class name, or several.
    """
    path = folder / _PROMPTS
    if not path.is_file():
        return ()
    lines = [line.strip() for line in read_text(path).splitlines()]
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    wrong = [prompt for prompt in prompts if prompt.count("{}") != 1]
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]!r} needs {{}} once, for the class name")
    return prompts


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()
    )


def _is_own_folder(root: Path, name: str) -> bool:
    """Whether a name is that of a folder directly below the root."""
    return Path(name).name == name and not name.startswith(".") and (root / name).is_dir()


def _no_data(name: str, root: Path, folder: Path | None, task: Task | None) -> NoDataError:
    if folder is not None:
        return NoDataError(
            f"{folder} has nothing that can be read: add class folders with images, labels.csv "
            "with paths and labels, tars of a WebDataset export, or Parquet files"
        )
    how = f"; {task.how_to_get}" if task is not None and task.how_to_get else ""
    return NoDataError(f"{root} has no data of {name}; put it into {root / name}{how}")
