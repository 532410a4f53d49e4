"""A folder of one's own pictures: recognised, or refused with what to do."""

import logging
import shutil
from pathlib import Path

import pytest
from eval_layouts import LABELS, image_folder, parquet_export, webdataset_export, write_image
from tiny import make_config

from cit_curate.errors import BadInputError, ConfigError
from cit_train.config import EvaluationConfig, RunConfig
from cit_train.evaluation.evaluator import Evaluator
from cit_train.evaluation.open_folder import open_folder
from cit_train.evaluation.open_task import open_task
from cit_train.evaluation.readers.labelled_images import LabelledImages
from cit_train.loop.session import open_session

NAMES = ("auk", "bee", "cow")


def names_of(images: LabelledImages) -> list[str]:
    """The class of each image."""
    return [images.classes[target].name for target in images.targets]


def listed(folder: Path, name: str, text: str) -> Path:
    """Six pictures in `folder/files`, and a list of them."""
    for number in range(len(LABELS)):
        write_image(folder / "files" / f"{number}.jpg", number)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def rows(form: str, labels: tuple[object, ...] = NAMES) -> str:
    """A line for each picture; `{}` is its path, and then its label."""
    lines = [
        form.format(f"files/{number}.jpg", labels[label]) for number, label in enumerate(LABELS)
    ]
    return "\n".join(lines) + "\n"


# --- file lists


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "path,label\n" + rows("{},{}")),
        ("labels.csv", rows("{},{}")),
        ("labels.csv", "Class Name,File Name\n" + rows("{1},{0}")),
        ("labels.csv", rows("{1},{0}")),
        ("labels.tsv", "image\tcategory\n" + rows("{}\t{}")),
        ("labels.txt", rows("{} {}")),
        ("labels.jsonl", rows('{{"file_name": "{}", "label": "{}"}}')),
        ("metadata.csv", "file_name,text,label\n" + rows("{},a picture,{}")),
        ("metadata.jsonl", rows('{{"label": "{1}", "file_name": "{0}"}}')),
    ],
)
def test_a_list_beside_the_files_gives_their_classes(name: str, text: str, tmp_path: Path) -> None:
    images = open_folder(listed(tmp_path, name, text))
    assert images.reader == "file list"
    assert [entry.name for entry in images.classes] == list(NAMES)
    assert images.targets.tolist() == list(LABELS)


def test_a_list_in_utf_16_is_read(tmp_path: Path) -> None:
    listed(tmp_path, "labels.csv", "")
    (tmp_path / "labels.csv").write_text(rows("{},{}"), encoding="utf-16")
    assert open_folder(tmp_path).targets.tolist() == list(LABELS)


def test_numbers_in_a_list_need_their_names(tmp_path: Path) -> None:
    folder = listed(tmp_path / "data", "labels.csv", rows("{},{}", (0, 1, 2)))
    with pytest.raises(ConfigError, match=r"classes\.txt .*or give --classes"):
        open_folder(folder)
    classes = tmp_path / "names.txt"
    classes.write_text("\n".join(NAMES))
    images = open_folder(folder, classes=classes)
    assert names_of(images) == [NAMES[label] for label in LABELS]
    assert images.naming == "names.txt: 3 classes: auk, bee, cow; matched by number from 0"
    (folder / "labels.csv").write_text(rows("{},{}", (1, 2, 3)))
    images = open_folder(folder, classes=classes)
    assert names_of(images) == [NAMES[label] for label in LABELS]
    (folder / "labels.csv").write_text(rows("{},{}", (0, 1, 3)))
    with pytest.raises(ConfigError, match=r"names 3 classes, and the labels in .* are 0 to 3"):
        open_folder(folder, classes=classes)


def test_a_class_list_overrules_that_beside_a_file_list(tmp_path: Path) -> None:
    folder = listed(tmp_path / "data", "labels.csv", rows("{},{}", (0, 1, 2)))
    (folder / "classes.txt").write_text("x\ny\nz\n")
    assert names_of(open_folder(folder))[-1] == "z"
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert names_of(open_folder(folder, classes=tmp_path / "names.txt"))[-1] == "cow"


def test_labels_differ_from_names_in_case_and_punctuation_only(tmp_path: Path) -> None:
    labels = ("sea_auk", "Bee", "COW")
    folder = listed(tmp_path / "data", "labels.csv", rows("{},{}", labels))
    classes = tmp_path / "names.txt"
    classes.write_text("cow\nbee\nsea auk\nfox\n")
    images = open_folder(folder, classes=classes)
    assert names_of(images) == [("sea auk", "bee", "cow")[label] for label in LABELS]
    shutil.copy(classes, folder / "classes.txt")
    assert names_of(open_folder(folder)) == names_of(images)


def test_listed_pictures_that_are_not_there_are_missed_at_once(tmp_path: Path) -> None:
    folder = listed(tmp_path, "labels.csv", rows("pictures/{},{}"))
    with pytest.raises(BadInputError, match=r"6 of 6 images are not there, such as .*pictures"):
        open_folder(folder)


def test_a_table_of_something_else_is_no_file_list(tmp_path: Path) -> None:
    image_folder(tmp_path, NAMES)
    for name, text in {
        "labels.txt": "auk\nbee\ncow\n",
        "labels.csv": "number,name\n0,auk\n",
        "metadata.csv": "file_name,text\nauk/0.png,an auk at sea\n",
    }.items():
        (tmp_path / name).write_text(text)
        images = open_folder(tmp_path)
        assert images.reader == "image folder"
        assert images.targets.tolist() == list(LABELS)
        assert f"{name} in {tmp_path} lists no images" in images.notes[0]
        (tmp_path / name).unlink()


def test_a_list_whose_columns_are_unknown_is_refused_where_nothing_else_has_classes(
    tmp_path: Path,
) -> None:
    folder = listed(tmp_path, "labels.csv", "id,breed\n" + rows("{},{}").replace("files/", ""))
    (folder / "labels.csv").write_text("id,breed\n0,auk\n1,bee\n")
    with pytest.raises(ConfigError, match=r"labels\.csv: its first line, id, breed"):
        open_folder(folder)


# --- exports


def test_exports_are_read_as_for_a_task(tmp_path: Path) -> None:
    wds = open_folder(webdataset_export(tmp_path / "wds", names=NAMES))
    parquet = open_folder(parquet_export(tmp_path / "parquet", names=NAMES))
    assert wds.reader == "WebDataset export"
    assert parquet.reader == "Parquet export"
    assert names_of(wds) == names_of(parquet) == [NAMES[label] for label in LABELS]


def test_a_tar_beside_class_folders_does_not_hide_them(tmp_path: Path) -> None:
    image_folder(tmp_path, NAMES)
    (tmp_path / "all.tar").write_bytes(b"")
    assert open_folder(tmp_path).reader == "image folder"


def test_a_class_list_names_the_numbers_of_an_export(tmp_path: Path) -> None:
    folder = webdataset_export(tmp_path / "wds")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    images = open_folder(folder, classes=tmp_path / "names.txt")
    assert names_of(images) == [NAMES[label] for label in LABELS]


# --- class folders


def test_numbered_folders_are_ordered_by_number_and_want_names(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / "data" / str(number) / "1.jpg", number % 6)
    images = open_folder(tmp_path / "data")
    assert [entry.name for entry in images.classes] == [str(number) for number in range(12)]
    assert "the class names are numbers (0, 1, 2, 3, 4, …)" in images.notes[0]
    assert "give --classes FILE" in images.notes[0]
    classes = tmp_path / "names.txt"
    classes.write_text("".join(f"kind {letter}\n" for letter in "abcdefghijkl"))
    named = open_folder(tmp_path / "data", classes=classes)
    assert names_of(named) == [f"kind {letter}" for letter in "abcdefghijkl"]
    assert [Path(named.images.title(row)).parent.name for row in range(12)] == [
        str(number) for number in range(12)
    ]
    assert named.notes == ()


def test_wordnet_identifiers_want_names(tmp_path: Path) -> None:
    image_folder(tmp_path, ("n01503061", "n02084071", "n02121808"))
    assert "WordNet identifiers" in open_folder(tmp_path).notes[0]


def test_what_is_not_evaluated_is_said(tmp_path: Path) -> None:
    image_folder(tmp_path, NAMES)
    write_image(tmp_path / "loose.jpg", 0)
    (tmp_path / "auk" / "scan.TIFF").write_bytes(b"")
    for empty in ("dodo", ".cache", "__pycache__"):
        (tmp_path / empty).mkdir()
    images = open_folder(tmp_path)
    assert [entry.name for entry in images.classes] == [*NAMES, "dodo"]
    assert images.targets.tolist() == list(LABELS)
    empty, loose, formats = images.notes
    assert (
        "1 of the 4 class folders holds no picture, and it is a choice all the same: dodo" in empty
    )
    assert f"1 pictures lie in {tmp_path} itself" in loose
    assert "not read are 1 .tiff" in formats


def test_class_folders_of_other_formats_only_say_so(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.tif").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"none of the 3 class folders .* not read are 3 \.tif"):
        open_folder(tmp_path)


def test_folders_that_all_classes_share_may_be_the_classes(tmp_path: Path) -> None:
    for name in ("drawings", "photos"):
        image_folder(tmp_path / name, NAMES)
    (note,) = open_folder(tmp_path).notes
    assert "each class folder holds the same folders (auk, bee, cow)" in note
    assert f"--data {tmp_path / 'drawings'}" in note


def test_one_class_is_refused_in_every_layout(tmp_path: Path) -> None:
    write_image(tmp_path / "folder" / "auk" / "1.jpg", 0)
    listed(tmp_path / "list", "labels.csv", rows("{},{}", ("auk", "auk", "auk")))
    webdataset_export(tmp_path / "wds", [0, 0], names=["auk"])
    parquet_export(tmp_path / "parquet", ["auk", "auk"])
    for layout in ("folder", "list", "wds", "parquet"):
        with pytest.raises(ConfigError, match="one class: accuracy says nothing"):
            open_folder(tmp_path / layout)
        with pytest.raises(ConfigError, match="one class: accuracy says nothing"):
            open_task(layout, tmp_path)


def test_pictures_of_one_class_among_several_are_said(tmp_path: Path) -> None:
    write_image(tmp_path / "data" / "auk" / "1.jpg", 0)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    images = open_folder(tmp_path / "data", classes=tmp_path / "names.txt")
    assert len(images.classes) == 3
    assert images.notes[-1] == "all pictures are of one class, 'auk'"


@pytest.mark.parametrize("kind", ["nowhere", "file"])
def test_what_is_no_folder_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"--data .*; give a folder"):
        open_folder(tmp_path / kind)


# --- the same for a task's folder


@pytest.mark.parametrize("split", ["Test", "VAL", "valid", "test_set/test_set"])
def test_a_task_takes_the_split_to_evaluate_on_and_says_so(split: str, tmp_path: Path) -> None:
    image_folder(tmp_path / "mine" / split, NAMES)
    image_folder(tmp_path / "mine" / "train", NAMES)
    images = open_task("mine", tmp_path)
    assert names_of(images) == [NAMES[label] for label in LABELS]
    assert images.notes == (f"the split {split}",)


def test_a_task_with_a_training_split_only_is_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "mine" / "Training", NAMES)
    with pytest.raises(ConfigError, match=r"Training holds class folders; give one of them"):
        open_task("mine", tmp_path)


def test_a_class_list_is_not_ignored_for_a_tasks_file_list(tmp_path: Path) -> None:
    listed(tmp_path / "mine", "labels.csv", rows("{},{}", (0, 1, 2)))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    images = open_task("mine", tmp_path, classes=tmp_path / "names.txt")
    assert names_of(images) == [NAMES[label] for label in LABELS]


# --- while training


def evaluator_of(data: Path, classes: str = "") -> Evaluator:
    evaluator = Evaluator.open(EvaluationConfig(eval_data=str(data), eval_classes=classes), 32)
    assert evaluator is not None
    return evaluator


def test_an_evaluator_reads_a_file_list(tmp_path: Path) -> None:
    folder = listed(tmp_path, "labels.csv", rows("{},{}"))
    assert evaluator_of(folder).images.targets.tolist() == list(LABELS)


def test_an_evaluator_names_the_options_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "data" / "train", NAMES)
    image_folder(tmp_path / "data" / "val", NAMES)
    with pytest.raises(ConfigError, match=f"--eval-data {tmp_path / 'data' / 'val'}"):
        evaluator_of(tmp_path / "data")
    with pytest.raises(ConfigError, match="--eval-classes: there is no file"):
        evaluator_of(tmp_path / "data" / "val", str(tmp_path / "nowhere.txt"))
    image_folder(tmp_path / "numbers", ("0", "1", "2"))
    with caplog.at_level(logging.WARNING):
        evaluator_of(tmp_path / "numbers").announce()
    assert "--eval-data: the class names are numbers" in caplog.text
    assert "give --eval-classes FILE" in caplog.text
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    evaluator_of(tmp_path / "numbers", str(tmp_path / "names.txt")).announce()
    assert "names.txt: 3 classes: auk, bee, cow; matched by number" in capsys.readouterr().err


@pytest.fixture
def refused(world: Path, tmp_path: Path) -> dict[str, RunConfig]:
    """A run's config for each layout that cannot be evaluated."""
    image_folder(tmp_path / "splits" / "train", NAMES)
    write_image(tmp_path / "alone" / "auk" / "1.jpg", 0)
    listed(tmp_path / "list", "labels.csv", rows("elsewhere/{},{}"))
    return {
        name: make_config(world, eval_data=str(tmp_path / name))
        for name in ("splits", "alone", "list")
    }


def test_training_refuses_before_anything_is_written(
    refused: dict[str, RunConfig], tmp_path: Path
) -> None:
    for name, message in {
        "splits": "holds splits and not classes",
        "alone": "one class: accuracy says nothing",
        "list": "6 of 6 images are not there",
    }.items():
        with pytest.raises((ConfigError, BadInputError), match=message):
            open_session(refused[name], tmp_path / "run")
        assert not (tmp_path / "run").exists()
