"""The 26 tasks: their numbers, names and prompts, and what happens without the library."""

import importlib.util
from collections import Counter

import pytest

from cit_curate.config import MetadataConfig
from cit_curate.errors import ConfigError
from cit_curate.metadata import libraries
from cit_curate.metadata.entries import MetadataEntry, load_metadata
from cit_curate.metadata.task_facts import FACTS
from cit_curate.metadata.tasks import (
    IMAGENET_EXTRA_PROMPTS,
    TASK_NAMES,
    load_classes,
    load_task,
)

# Task: classes, prompts, test images (CLIP paper, table 9 and its list of prompts).
NUMBERS = {
    "food101": (101, 1, 25_250),
    "cifar10": (10, 18, 10_000),
    "cifar100": (100, 18, 10_000),
    "cub200": (200, 1, 5_794),
    "sun397": (397, 2, 19_850),
    "cars": (196, 8, 8_041),
    "aircraft": (100, 2, 3_333),
    "dtd": (47, 8, 1_880),
    "pets": (37, 1, 3_669),
    "caltech101": (102, 34, 6_085),
    "flowers": (102, 1, 6_149),
    "mnist": (10, 1, 10_000),
    "fer2013": (7, 6, 3_574),
    "stl10": (10, 2, 8_000),
    "eurosat": (10, 3, 5_000),
    "resisc45": (45, 18, 25_200),
    "gtsrb": (43, 3, 12_630),
    "kitti_distance": (4, 1, 711),
    "country211": (211, 5, 21_100),
    "patch_camelyon": (2, 1, 32_768),
    "ucf101_frames": (101, 48, 1_794),
    "kinetics700_frames": (700, 28, 31_669),
    "clevr_counts": (8, 1, 500),
    "hateful_memes": (2, 1, 500),
    "rendered_sst2": (2, 1, 1_821),
    "imagenet": (1_000, 7, 50_000),
}


def test_the_tasks_are_the_26_in_order() -> None:
    assert tuple(NUMBERS) == TASK_NAMES


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_task_has_the_numbers_of_the_protocol(name: str) -> None:
    task = load_task(name)
    assert task.classes is not None
    assert (len(task.classes), len(task.prompts), task.num_test) == NUMBERS[name]
    assert task.num_classes == len(task.classes)
    assert len(set(task.prompts)) == len(task.prompts)
    assert all(prompt.count("{}") == 1 for prompt in task.prompts)
    assert task.how_to_get.endswith(".")


@pytest.mark.parametrize("name", TASK_NAMES)
def test_names_are_clean_and_only_imagenet_has_equal_ones(name: str) -> None:
    names = [each for entry in load_classes(name) for each in entry.names]
    assert all(each and each == " ".join(each.split()) for each in names)
    assert not any("_" in each or "|" in each for each in names)
    twice = {each for each, times in Counter(names).items() if times > 1}
    assert twice == ({"missile", "sunglasses"} if name == "imagenet" else set())


def test_only_fer2013_has_synonyms_and_its_order_is_that_of_its_labels() -> None:
    with_synonyms = {name for name in TASK_NAMES for e in load_classes(name) if e.synonyms}
    assert with_synonyms == {"fer2013"}
    fer2013 = load_classes("fer2013")
    assert fer2013[5] == MetadataEntry("surprised", ("shocked", "spooked"))
    assert fer2013[6] == MetadataEntry("neutral", ("bored",))


def test_metrics_are_those_of_the_protocol() -> None:
    special = {facts.name: facts.metric for facts in FACTS if facts.metric != "accuracy"}
    assert special == {
        **dict.fromkeys(("aircraft", "pets", "caltech101", "flowers"), "mean_per_class"),
        "kinetics700_frames": "mean_top1_top5",
        "hateful_memes": "roc_auc",
    }


@pytest.mark.parametrize(
    ("name", "index", "expected"),
    [
        ("food101", 100, "waffles"),
        ("cifar100", 58, "pickup truck"),
        ("cub200", 0, "Black footed Albatross"),
        ("sun397", 8, "apartment building outdoor"),
        ("cars", 5, "Acura Integra Type R 2001"),
        ("pets", 1, "american bulldog"),
        ("caltech101", 0, "background"),
        ("eurosat", 9, "lake or sea"),
        ("ucf101_frames", 36, "Hand Stand Pushups"),
        ("kinetics700_frames", 19, "backflip (human)"),
        ("kinetics700_frames", 699, "zumba"),
        ("clevr_counts", 0, "3"),
        ("imagenet", 0, "tench"),
        ("imagenet", 999, "toilet paper"),
    ],
)
def test_a_class_stands_at_its_index(name: str, index: int, expected: str) -> None:
    assert load_classes(name)[index].name == expected


def test_prompts_that_are_put_together_read_as_published() -> None:
    kinetics, ucf101 = load_task("kinetics700_frames").prompts, load_task("ucf101_frames").prompts
    assert kinetics[:3] == (
        "a photo of {}.",
        "a photo of a person {}.",
        "a photo of a person using {}.",
    )
    assert kinetics[-1] == "a demonstration of a person practicing {}."
    assert ucf101[3:5] == ("a demonstration of a person {}.", "a photo of the person {}.")
    assert load_task("resisc45").prompts[6] == "satellite imagery of a {}."
    assert IMAGENET_EXTRA_PROMPTS == ("A photo of a {}", "{}")


def test_an_unknown_task_gets_the_nearest_spelling() -> None:
    with pytest.raises(ConfigError, match="no task 'cifar-10'; did you mean 'cifar10'"):
        load_task("cifar-10")
    with pytest.raises(ConfigError, match="there are food101, cifar10"):
        load_task("zzz")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """clip-benchmark is not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        libraries.importlib.util,
        "find_spec",
        lambda name: None if name == "clip_benchmark" else find_spec(name),
    )


@pytest.mark.usefixtures("no_library")
def test_without_the_library_the_message_has_the_pip_command() -> None:
    for name in ("imagenet", "mt"):
        with pytest.raises(ConfigError, match=r"clip-benchmark.*pip install 'cit\[tasks\]'"):
            load_metadata(MetadataConfig(metadata=name))
    with pytest.raises(ConfigError, match=r"pip install 'cit\[tasks\]'"):
        load_task("cifar10")


@pytest.mark.usefixtures("no_library")
def test_names_that_ship_with_cit_need_no_library() -> None:
    assert len(load_metadata(MetadataConfig(metadata="cifar10"))) == 10
    assert len(load_metadata(MetadataConfig(metadata="imagenet21k"))) > 20_000


def test_a_library_with_another_number_of_names_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cit_curate.metadata.tasks.clip_benchmark_names", lambda key: ["one"])
    with pytest.raises(ConfigError, match=r"mnist has 10 classes, but clip-benchmark .* names 1;"):
        load_classes("mnist")
