import importlib.util
from pathlib import Path

import numpy as np
import pytest
from eval_layouts import LABELS, TORCHVISION_LAYOUTS, cifar_binary, grey, write_image

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.images.read import ImageRejected
from cit_curate.metadata.tasks import load_task
from cit_train.evaluation.open_task import open_task
from cit_train.evaluation.readers.labelled_images import LabelledImages
from cit_train.evaluation.readers.torchvision_sets import TORCHVISION_SETS

# The class of the task that images of label 0, 1 and 2 are of, where that is not the label itself.
CLASSES = {"caltech101": (1, 3, 101), "patch_camelyon": (0, 1, 1), "rendered_sst2": (0, 1, 1)}
# Their files are compared with the hashes of the real ones.
HASHED = {
    "fer2013": "fer2013.check_integrity",
    "flowers": "flowers102.Flowers102._check_integrity",
    "stl10": "stl10.STL10._check_integrity",
}


def names_of(task: str) -> list[str]:
    classes = load_task(task).classes
    assert classes is not None
    return [entry.name for entry in classes]


def greys(images: LabelledImages) -> list[int]:
    """The number of each image in its layout."""
    values = [np.asarray(images.images.read(row))[5, 5].tolist() for row in range(len(LABELS))]
    assert all(max(value) - min(value) <= 2 for value in values)
    return [round((value[0] - grey(0)) / 30) for value in values]


@pytest.mark.parametrize("task", TORCHVISION_LAYOUTS)
def test_a_data_set_of_torchvision_is_read_with_the_tasks_classes(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TORCHVISION_LAYOUTS[task](tmp_path, names_of(task))
    if task in HASHED:
        monkeypatch.setattr(f"torchvision.datasets.{HASHED[task]}", lambda *_, **__: True)
    images = open_task(task, tmp_path)
    assert images.reader == f"torchvision {TORCHVISION_SETS[task].name}"
    order = np.argsort(greys(images), kind="stable") if task == "sun397" else np.arange(len(LABELS))
    assert [greys(images)[row] for row in order] == list(range(len(LABELS)))
    classes = CLASSES.get(task, (0, 1, 2))
    targets = images.targets[: len(LABELS)][order].tolist()
    assert targets == [classes[label] for label in LABELS]
    assert images.classes == load_task(task).classes
    assert images.images.read(0).mode == "RGB"


def test_every_data_set_has_a_layout_in_these_tests() -> None:
    assert TORCHVISION_LAYOUTS.keys() == TORCHVISION_SETS.keys()


def test_what_differs_from_the_papers_protocol_is_noted(tmp_path: Path) -> None:
    TORCHVISION_LAYOUTS["eurosat"](tmp_path, ())
    assert "not the 5,000 as in CLIP" in open_task("eurosat", tmp_path).notes[0]


def test_torchvisions_root_may_be_the_tasks_own_folder(tmp_path: Path) -> None:
    (tmp_path / "food101").mkdir()
    TORCHVISION_LAYOUTS["food101"](tmp_path / "food101", names_of("food101"))
    assert open_task("food101", tmp_path).reader == "torchvision Food101"


@pytest.mark.parametrize("split", ["", "test"])
@pytest.mark.parametrize(
    ("folder", "task"), [("fer2013", "fer2013"), ("pcam", "patch_camelyon"), ("dtd", "dtd")]
)
def test_class_folders_are_read_where_torchvision_would_have_its_own_files(
    folder: str, task: str, split: str, tmp_path: Path
) -> None:
    for number, name in enumerate(names_of(task)[:2]):
        write_image(tmp_path / folder / split / name / "one.jpg", number)
    images = open_task(task, tmp_path)
    assert (images.reader, images.targets.tolist()) == ("image folder", [0, 1])


@pytest.mark.parametrize("name", ["icml_face_data.csv", "test.csv"])
def test_each_file_of_fer2013_that_torchvision_takes_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / "fer2013").mkdir()
    (tmp_path / "fer2013" / name).write_text("not the real one")
    with pytest.raises(DamagedError, match="FER2013 cannot open it"):
        open_task("fer2013", tmp_path)


def test_a_broken_image_is_rejected_with_a_reason(tmp_path: Path) -> None:
    TORCHVISION_LAYOUTS["food101"](tmp_path, names_of("food101"))
    images = open_task("food101", tmp_path)
    first = min(tmp_path.rglob("*.jpg"))
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(ImageRejected, match="truncated_image"):
        images.images.read(0)


def test_a_data_set_that_is_not_whole_is_damaged(tmp_path: Path) -> None:
    TORCHVISION_LAYOUTS["aircraft"](tmp_path, names_of("aircraft"))
    (tmp_path / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt").unlink()
    with pytest.raises(DamagedError, match="FGVCAircraft cannot open it"):
        open_task("aircraft", tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TORCHVISION_LAYOUTS["patch_camelyon"](tmp_path, ())
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "h5py" else find_spec(name)
    )
    with pytest.raises(ConfigError, match="pip install h5py"):
        open_task("patch_camelyon", tmp_path)


@pytest.mark.parametrize(("task", "fine"), [("cifar10", False), ("cifar100", True)])
def test_cifar_is_read_from_its_binary_version(task: str, fine: bool, tmp_path: Path) -> None:
    images = open_task(task, cifar_binary(tmp_path, fine=fine))
    assert images.reader == "CIFAR binary"
    assert greys(images) == list(range(len(LABELS)))
    assert images.targets.tolist() == list(LABELS)
    assert images.classes == load_task(task).classes


@pytest.mark.faults("X1")
def test_pickled_cifar_is_refused_and_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch"):
        (folder / name).write_bytes(
            b"cos\nsystem\n(S'touch " + str(tmp_path).encode() + b"/x'\ntR."
        )
    with pytest.raises(ConfigError, match=r"pickles.*cifar-10-binary\.tar\.gz"):
        open_task("cifar10", tmp_path)
    assert not (tmp_path / "x").exists()


def test_a_cut_cifar_file_is_damaged(tmp_path: Path) -> None:
    path = cifar_binary(tmp_path) / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="not a multiple"):
        open_task("cifar10", tmp_path)


def test_a_label_beyond_the_classes_is_bad_input(tmp_path: Path) -> None:
    path = cifar_binary(tmp_path) / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(BadInputError, match="record 0: its label is 10"):
        open_task("cifar10", tmp_path)


def test_a_broken_mat_file_is_damaged(tmp_path: Path) -> None:
    for keep in (0, 40, 300):
        root = tmp_path / str(keep)
        TORCHVISION_LAYOUTS["cars"](root, names_of("cars"))
        path = root / "stanford_cars" / "cars_test_annos_withlabels.mat"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DamagedError, match="StanfordCars cannot open it"):
            open_task("cars", root)
