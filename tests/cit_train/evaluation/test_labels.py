import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cit_curate.errors import BadInputError, ConfigError
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.metadata.tasks import TASK_NAMES, load_task
from cit_train.evaluation.labels import _ALIASES, attach, match_names
from cit_train.evaluation.readers.labelled_images import SourceImages, spread_rows


class Nothing:
    """Images that nobody looks at."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def read(self, row: int) -> Image.Image:
        raise AssertionError

    def title(self, row: int) -> str:
        return f"image {row}"


def source_images(
    labels: list[int], names: list[str] | None = None, *, readable: bool = True
) -> SourceImages:
    return SourceImages(
        reader="test",
        images=Nothing(len(labels)),
        labels=np.array(labels, dtype=np.int64),
        names=None if names is None else entries(names),
        names_are_readable=readable,
    )


def entries(names: list[str]) -> tuple[MetadataEntry, ...]:
    return tuple(MetadataEntry(name) for name in names)


def test_names_match_by_letters_and_digits() -> None:
    classes = (MetadataEntry("Artic Tern"), MetadataEntry("707-320"), MetadataEntry("café au lait"))
    names = entries(["002.cafe_au_lait", "artic_tern", "707320", "gull"])
    assert match_names(names, classes, task="") == [2, 0, 1, None]


def test_synonyms_match_but_a_first_name_goes_before_them() -> None:
    classes = (MetadataEntry("sad", ("blue",)), MetadataEntry("blue"), MetadataEntry("red"))
    assert match_names(entries(["blue", "sad", "red"]), classes, task="") == [1, 0, 2]


def test_a_name_of_two_classes_matches_neither() -> None:
    classes = entries(["crane", "boat", "crane"])
    assert match_names(entries(["crane", "boat"]), classes, task="") == [None, 1]


def test_numbers_are_positions_when_they_can_be_read_in_one_way_only() -> None:
    classes = entries(["ant", "bee", "cat"])
    assert match_names(entries(["2", "0"]), classes, task="") == [2, 0]
    assert match_names(entries(["00000", "00002"]), classes, task="") == [0, 2]
    assert match_names(entries(["3", "1", "2"]), classes, task="") == [2, 0, 1]
    # CLEVR's classes are numbers themselves.
    assert match_names(entries(["0", "3", "4"]), entries(["3", "4", "5"]), task="") == [None, 0, 1]
    # From 0 or from 1: nobody knows.
    assert match_names(entries(["1", "2"]), classes, task="") == [None, None]
    assert match_names(entries(["0", "3"]), classes, task="") == [None, None]


def test_synsets_of_imagenet_are_its_classes_in_sorted_order() -> None:
    classes = load_task("imagenet").classes
    assert classes is not None
    synsets = [f"n{1_440_764 + 7 * row:08}" for row in range(1000)]
    shuffled = np.random.default_rng(0).permutation(1000).tolist()
    names = entries([synsets[row] for row in shuffled])
    assert match_names(names, classes, task="imagenet") == shuffled
    # A part of them could be any part.
    assert set(match_names(names[:100], classes, task="imagenet")) == {None}


def test_the_folders_of_well_known_data_sets_are_understood() -> None:
    folders = {
        "eurosat": "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture "
        "PermanentCrop Residential River SeaLake",
        "fer2013": "angry disgust fear happy sad surprise neutral",
        "clevr_counts": "three four five six seven eight nine ten",
        "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
        "caltech101": "BACKGROUND_Google Faces Faces_easy Leopards Motorbikes accordion airplanes",
    }
    for task, names in folders.items():
        classes = load_task(task).classes
        assert classes is not None
        matched = match_names(entries(names.split()), classes, task=task)
        assert matched == list(range(len(matched))), task


@pytest.mark.parametrize("task", sorted(_ALIASES))
def test_every_alias_is_of_a_class(task: str) -> None:
    classes = load_task(task).classes
    assert classes is not None
    names = entries(list(_ALIASES[task]))
    matched = match_names(names, classes, task=task)
    assert None not in matched
    assert [classes[place].name for place in matched if place is not None] == list(
        _ALIASES[task].values()
    )


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_names_of_a_task_are_its_own(task: str) -> None:
    classes = load_task(task).classes
    assert classes is not None
    matched = match_names(classes, classes, task=task)
    own = [place for place, position in enumerate(matched) if position == place]
    # ImageNet has two cranes and two maillots, which only their synsets tell apart.
    assert len(own) == len(classes) - (4 if task == "imagenet" else 0)


@given(st.permutations(range(10)), st.lists(st.integers(0, 9), min_size=1))
def test_shuffled_names_give_the_same_classes(order: list[int], targets: list[int]) -> None:
    task = load_task("cifar10")
    assert task.classes is not None
    names = [task.classes[position].name.title() for position in order]
    labels = [order.index(target) for target in targets]
    images = attach(source_images(labels, names), task, name="cifar10")
    assert images.targets.tolist() == targets
    assert images.classes == task.classes
    assert images.notes == ()


def test_numbers_without_names_are_positions() -> None:
    images = attach(source_images([3, 0]), load_task("gtsrb"), name="gtsrb")
    assert images.targets.tolist() == [3, 0]
    with pytest.raises(BadInputError, match="image 1: its label is 43; gtsrb has the classes 0 to"):
        attach(source_images([3, 43]), load_task("gtsrb"), name="gtsrb")
    with pytest.raises(ConfigError, match="nothing says what they mean"):
        attach(source_images([3, 0]), None, name="signs")


def test_readable_names_that_differ_are_the_classes_and_a_note_says_so() -> None:
    names = ["tumour", "no tumour"]
    images = attach(
        source_images([0, 1, 1], names), load_task("patch_camelyon"), name="patch_camelyon"
    )
    assert images.classes == entries(names)
    assert images.targets.tolist() == [0, 1, 1]
    assert "differ" in images.notes[0]


def test_folders_that_do_not_match_are_refused_with_the_nearest_name() -> None:
    names = ["airplanes", "cat"]
    with pytest.raises(ConfigError, match=r"'airplanes'; the nearest to 'airplanes' is 'airplane'"):
        attach(source_images([0, 1], names, readable=False), load_task("cifar10"), name="cifar10")
    # A class without images need not match.
    images = attach(source_images([1], names, readable=False), load_task("cifar10"), name="cifar10")
    assert images.targets.tolist() == [3]


def test_two_folders_of_one_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="two of its 2 classes are one"):
        attach(
            source_images([0, 1], ["Cat", "cat"], readable=False),
            load_task("cifar10"),
            name="cifar10",
        )


@given(st.integers(1, 500), st.integers(1, 600))
def test_a_limit_spreads_the_rows_over_all_images(num_images: int, limit: int) -> None:
    rows = spread_rows(num_images, limit).tolist()
    assert len(rows) == min(limit, num_images)
    assert rows == sorted(set(rows))
    assert rows[0] >= 0
    assert rows[-1] < num_images
    if limit < num_images:
        gaps = np.diff(rows)
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_a_limit_takes_equally_many_of_sorted_classes() -> None:
    targets = np.repeat(np.arange(10), 50)
    assert np.bincount(targets[spread_rows(500, 40)]).tolist() == [4] * 10
    assert spread_rows(500, None).tolist() == list(range(500))
    with pytest.raises(ValueError, match="limit is 0"):
        spread_rows(500, 0)
