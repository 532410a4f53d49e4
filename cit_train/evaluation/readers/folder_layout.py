"""What the sub-folders of a folder of images are: classes, splits, or a wrapper around either."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cit_curate.errors import ConfigError
from cit_curate.sources.folder import IMAGE_SUFFIXES
from cit_train.evaluation.readers.class_names import in_natural_order, some
from cit_train.evaluation.readers.file_list import find_file_list
from cit_train.evaluation.readers.labelled_images import Flags

__all__ = [
    "Split",
    "class_folders",
    "find_splits",
    "holds_images",
    "images_below",
    "refuse_other_layouts",
    "shared_folders",
    "walk_visible",
]

SplitKind = Literal["val", "test", "train"]
# The splits' names, the one to evaluate on first.
_KINDS: dict[SplitKind, str] = {
    "val": r"val|valid|validation|dev|eval|evaluation",
    "test": r"test|testing|tst",
    "train": r"train|training|trn",
}
# As people and tools write them: `Val`, `valid`, `test_set`, `train2017`, `images_train`.
_PART = r"(?:images?|imgs?|pictures?|pics?|data|set|split)"
_SPLITS = {
    kind: re.compile(rf"(?:{_PART}[-_ .]?)?(?:{names})(?:[-_ .]?(?:{_PART}|\d{{1,4}}))?", re.I)
    for kind, names in _KINDS.items()
}
# A split only beside another of the same remainder: `seg_train` and `seg_test`.
_AFFIXED = {
    kind: re.compile(rf"(.+[-_ .])?(?:{names})([-_ .].+)?", re.I) for kind, names in _KINDS.items()
}
# Folders that tools leave behind, which hold no class.
_LEFTOVERS = frozenset(
    {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
)
_MAX_WRAPPERS = 4


@dataclass(frozen=True)
class Split:
    """A sub-folder that is a part of the data and not a class.

    Attributes:
        name: Its name below the folder that holds it.
        kind: Which part it is.
        path: The folder that holds its classes, which may lie deeper than the split itself.
        content: What it holds: `class folders`, the name of a file list, or `pictures`.
    """

    name: str
    kind: SplitKind
    path: Path
    content: str

    @property
    def is_labelled(self) -> bool:
        """Whether its pictures have classes."""
        return self.content != "pictures"


def class_folders(root: Path) -> tuple[str, ...]:
    """The visible sub-folders of a folder, sorted; numbered ones by their numbers."""
    return in_natural_order(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir()
        and not entry.name.startswith(".")
        and entry.name.lower() not in _LEFTOVERS
    )


def find_splits(root: Path) -> tuple[Split, ...]:
    """The splits that a folder holds in place of classes, validation first; empty = none.

    A folder called `train` or `test` is a split if every folder with pictures beside it is one
    too, or if at least one other kind of split lies beside it and one of them holds class folders.
    Otherwise it is a class: a train.
    """
    filled = _filled_folders(root)
    kind_of = _split_kinds(filled)
    splits = [_split(root / name, kind) for name, kind in kind_of.items()]
    if len(splits) < len(filled):
        has_classes = any(split.content == "class folders" for split in splits)
        if len(set(kind_of.values())) < 2 or not has_classes:
            return ()
    ranks = list(_KINDS)
    return tuple(sorted(splits, key=lambda split: ranks.index(split.kind)))


def refuse_other_layouts(root: Path, flags: Flags) -> None:
    """Refuse a folder whose sub-folders are not classes but splits, or wrap the class folders.

    Raises:
        ConfigError: They are; the message names the folder to give.
    """
    inner = _unwrap(root)
    splits = find_splits(inner)
    if splits:
        raise ConfigError(_splits_message(root, inner, splits, flags))
    if inner != root:
        folders = class_folders(inner)
        raise ConfigError(
            f"{root} holds one class: accuracy says nothing. Its only folder with pictures, "
            f"{inner.relative_to(root)}, holds {len(folders)} folders ({some(folders)}); if they "
            f"are the classes, give {flags.data} {inner}"
        )
    _refuse_splits_within(root, flags)


def shared_folders(root: Path) -> tuple[str, ...]:
    """The sub-folders that every class folder has, where it has no other; empty = none."""
    filled = _filled_folders(root)
    below = {class_folders(root / name) for name in filled}
    return below.pop() if len(filled) > 1 and len(below) == 1 else ()


def holds_images(folder: Path) -> bool:
    """Whether a picture lies below a folder; looks no further than the first."""
    below = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_image(entry):
                return True
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                below.append(entry.path)
    return any(holds_images(Path(path)) for path in below)


def images_below(folder: Path) -> list[Path]:
    """The picture files below a folder, sorted, without hidden files and linked folders."""
    return sorted(path for path in walk_visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def walk_visible(folder: Path) -> Iterator[Path]:
    """The files below a folder, without hidden ones and linked folders."""
    for parent, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield Path(parent, name)


def _split_kind(name: str) -> SplitKind | None:
    return next((kind for kind, names in _SPLITS.items() if names.fullmatch(name)), None)


def _split_kinds(names: Sequence[str]) -> dict[str, SplitKind]:
    """The names that are splits', each with its kind."""
    affixed = {
        name: (kind, match.groups())
        for name in names
        for kind, pattern in _AFFIXED.items()
        if (match := pattern.fullmatch(name))
    }
    kinds: dict[str, SplitKind] = {}
    for name in names:
        kind = _split_kind(name)
        if kind is None and name in affixed:
            own_kind, affixes = affixed[name]
            if any(
                other != (own_kind, affixes) and other[1] == affixes for other in affixed.values()
            ):
                kind = own_kind
        if kind is not None:
            kinds[name] = kind
    return kinds


def _split(path: Path, kind: SplitKind) -> Split:
    inner = _unwrap(path)
    file_list = find_file_list(path)
    if file_list is not None:
        return Split(path.name, kind, path, file_list.name)
    content = "class folders" if _filled_folders(inner) else "pictures"
    return Split(path.name, kind, inner if content == "class folders" else path, content)


def _unwrap(folder: Path) -> Path:
    """The folder itself, or the one that it does nothing but wrap: its only folder with pictures.

    A folder of pictures is no wrapped one, since a class may well be alone.
    """
    inner = folder
    for _ in range(_MAX_WRAPPERS):
        filled = _filled_folders(inner)
        if len(filled) != 1 or _has_images(inner):
            return inner
        if _split_kind(filled[0]) and filled[0] != inner.name:
            return inner
        below = inner / filled[0]
        if not _filled_folders(below) or _has_images(below):
            return inner
        inner = below
    return inner


def _refuse_splits_within(root: Path, flags: Flags) -> None:
    """Refuse `images/val/CLASS` beside `masks/val/CLASS`: every folder holds splits."""
    filled = _filled_folders(root)
    splits = [find_splits(root / name) for name in filled]
    if len(filled) > 1 and all(
        any(split.content == "class folders" for split in inner) for inner in splits
    ):
        best = next(split for split in splits[0] if split.content == "class folders")
        raise ConfigError(
            f"each of {some(filled)} in {root} holds splits with class folders, so none of them "
            f"is a class; give one split, such as {flags.data} {best.path}"
        )


def _splits_message(root: Path, inner: Path, splits: Sequence[Split], flags: Flags) -> str:
    where = root if inner == root else inner
    names: dict[str, list[str]] = {}
    for split in sorted(splits, key=lambda split: split.name):
        names.setdefault(split.content, []).append(split.name)
    contents = [
        f"{_and(those)} {'hold' if len(those) > 1 else 'holds'} {content}"
        for content, those in names.items()
    ]
    facts = f"{where} holds splits and not classes: {'; '.join(contents)}"
    labelled = [split for split in splits if split.is_labelled]
    if not labelled:
        return (
            f"{facts}, and no class folders; sort the pictures of one split into CLASS/, or list "
            "them with their labels in a labels.csv beside them"
        )
    others = "".join(f", or {split.path}" for split in labelled[1:] if split.kind != "train")
    return f"{facts}; give one of them: {flags.data} {labelled[0].path}{others}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _filled_folders(folder: Path) -> list[str]:
    return [name for name in class_folders(folder) if holds_images(folder / name)]


def _has_images(folder: Path) -> bool:
    """Whether pictures lie in a folder itself."""
    with os.scandir(folder) as entries:
        return any(map(_is_image, entries))


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a visible picture file, by its name."""
    is_visible = not entry.name.startswith(".")
    return is_visible and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file()
