"""Whether sub-folders are classes, splits, or one more level around either."""

from pathlib import Path

import pytest

from cit_curate.errors import ConfigError
from cit_train.evaluation.readers.folder_layout import (
    class_folders,
    find_splits,
    refuse_other_layouts,
    shared_folders,
)
from cit_train.evaluation.readers.labelled_images import DEFAULT_FLAGS, Flags

BIRDS = ("auk", "owl")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def classes_below(root: Path, *folders: str) -> Path:
    """A picture of each bird in each of the folders."""
    return touch(root, *(f"{folder}/{bird}/1.jpg" for folder in folders for bird in BIRDS))


@pytest.mark.parametrize(
    ("folders", "best"),
    [
        (("train", "val"), "val"),
        (("train", "val", "test"), "val"),
        (("Train", "TEST"), "TEST"),
        (("training", "validation"), "validation"),
        (("trn", "dev", "tst"), "dev"),
        (("train", "valid"), "valid"),
        (("train2017", "val2017"), "val2017"),
        (("training_set", "test-set"), "test-set"),
        (("train images", "eval_images"), "eval_images"),
        (("birds_train", "birds_test"), "birds_test"),
        (("train.v2", "val.v2"), "val.v2"),
        (("images/train", "images/val"), "images/val"),
        (("release/Images/Train", "release/Images/Val"), "release/Images/Val"),
        (("train/train", "test/test"), "test/test"),
        (("seg_train/seg_train", "seg_test/seg_test"), "seg_test/seg_test"),
        (("train/photos", "val/photos"), "val/photos"),
        (("val",), "val"),
        (("train",), "train"),
        (("photos/train", "photos/val", "masks/train", "masks/val"), "masks/val"),
    ],
)
def test_splits_are_told_from_classes_and_the_one_to_give_is_named(
    folders: tuple[str, ...], best: str, tmp_path: Path
) -> None:
    classes_below(tmp_path, *folders)
    with pytest.raises(ConfigError, match="splits") as caught:
        refuse_other_layouts(tmp_path, Flags(data="--folder"))
    assert f"--folder {tmp_path / best}" in str(caught.value)
    refuse_other_layouts(tmp_path / best, DEFAULT_FLAGS)


def test_what_each_split_holds_is_said(tmp_path: Path) -> None:
    classes_below(tmp_path, "train", "val")
    touch(tmp_path, "test/1.jpg", "test/2.jpg", "notes/readme.txt", ".cache/1.jpg")
    with pytest.raises(ConfigError) as caught:
        refuse_other_layouts(tmp_path, DEFAULT_FLAGS)
    message = str(caught.value)
    assert "test holds pictures; train and val hold class folders" in message
    assert message.endswith(f"--data {tmp_path / 'val'}")


def test_a_split_with_a_file_list_is_one_to_give(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "test/pictures/1.jpg")
    (tmp_path / "test" / "labels.csv").write_text("path,label\npictures/1.jpg,owl\n")
    with pytest.raises(ConfigError, match=r"test holds labels\.csv; .*train holds pictures") as got:
        refuse_other_layouts(tmp_path, DEFAULT_FLAGS)
    assert f"--data {tmp_path / 'test'}" in str(got.value)


def test_splits_without_class_folders_cannot_be_given(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/1.jpg", "images/val/1.jpg", "labels/train/1.txt")
    with pytest.raises(ConfigError, match=r"train and val hold pictures, and no class folders"):
        refuse_other_layouts(tmp_path, DEFAULT_FLAGS)


@pytest.mark.parametrize(
    "names",
    [
        ("boat/1.jpg", "train/1.jpg"),
        ("boat/1.jpg", "train/steam/1.jpg", "train/tilting/2.jpg"),
        ("freight_train/1.jpg", "passenger_train/1.jpg"),
        ("crash_test/1.jpg", "bus/1.jpg"),
        ("valid/1.jpg", "invalid/1.jpg"),
        ("0/1.jpg", "1/1.jpg"),
        ("contest/1.jpg", "value/1.jpg"),
    ],
)
def test_classes_whose_names_look_like_splits_stay_classes(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    touch(tmp_path, *names)
    assert find_splits(tmp_path) == ()
    refuse_other_layouts(tmp_path, DEFAULT_FLAGS)


@pytest.mark.parametrize("wrapper", ["pictures", "release/pictures"])
def test_a_folder_around_the_class_folders_is_no_class(wrapper: str, tmp_path: Path) -> None:
    classes_below(tmp_path, wrapper)
    touch(tmp_path, "LICENSE")
    with pytest.raises(ConfigError, match=r"one class: accuracy says nothing.*auk, owl") as caught:
        refuse_other_layouts(tmp_path, DEFAULT_FLAGS)
    assert f"--data {tmp_path / wrapper}" in str(caught.value)
    refuse_other_layouts(tmp_path / wrapper, DEFAULT_FLAGS)


def test_folders_that_every_class_has_are_found(tmp_path: Path) -> None:
    classes_below(tmp_path / "same", "photos", "drawings")
    assert shared_folders(tmp_path / "same") == BIRDS
    touch(tmp_path / "other", "sea/auk/1.jpg", "wood/owl/1.jpg")
    assert shared_folders(tmp_path / "other") == ()
    assert shared_folders(classes_below(tmp_path / "flat", ".") / ".") == ()


def test_hidden_folders_and_leftovers_of_tools_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path, "owl/1.jpg", ".git/1.jpg", "__MACOSX/owl/._1.jpg", "@eaDir/1.jpg", "9.jpg")
    assert class_folders(tmp_path) == ("owl",)
