"""The union of the tasks, and the synsets of ImageNet-21k."""

from pathlib import Path

import pytest

from cit_curate.errors import ConfigError
from cit_curate.metadata import built_in, libraries
from cit_curate.metadata.built_in import built_in_entries, imagenet21k, multi_task
from cit_curate.metadata.lines import MetadataEntry, format_entry, parse_entries
from cit_curate.metadata.tasks import TASK_NAMES, load_classes


def test_mt_is_every_name_of_every_task_once_and_in_their_order() -> None:
    names = [entry.name for entry in multi_task()]
    expected = dict.fromkeys(
        name for task in TASK_NAMES for entry in load_classes(task) for name in entry.names
    )
    assert names == list(expected)
    # docs/method.md: 3,422 distinct strings in the reference.
    assert len(names) == 3_422
    assert names[0] == "apple pie"
    assert {"happy", "smiling"} <= set(names)
    assert not any(entry.synonyms for entry in multi_task())


def test_mt_gives_an_entry_of_two_tasks_the_prompts_of_both() -> None:
    prompts = {entry.name: entry.prompts for entry in multi_task(with_prompts=True)}
    assert prompts["apple pie"] == ("a photo of {}, a type of food.",)
    assert prompts["monkey"] == ("a photo of a {}.", "a photo of the {}.")
    pizza = prompts["pizza"]  # Food-101, Caltech-101 and ImageNet
    assert pizza[:3] == (
        "a photo of {}, a type of food.",
        "a photo of a {}.",
        "a painting of a {}.",
    )
    assert pizza[-1] == "a photo of the small {}."
    assert len(pizza) == len(set(pizza)) == 1 + 34 + 7 - 3


def test_classes_of_equal_name_are_one_entry() -> None:
    names = [entry.name for entry in built_in_entries("imagenet")]
    assert len(names) == len(set(names)) == 998
    assert names.index("missile") == 657


def test_imagenet21k_has_the_lemmas_of_all_synsets() -> None:
    lemmas = libraries.imagenet21k_lemmas()
    assert len(lemmas) == 21_841
    assert lemmas[0] == ["organism", "being"]
    entries = imagenet21k()
    assert len(entries) == 20_944
    assert {name for entry in entries for name in entry.names} == {
        lemma for group in lemmas for lemma in group
    }
    assert not any("_" in lemma or "|" in lemma for group in lemmas for lemma in group)


def test_senses_of_one_word_stay_apart_and_equal_ones_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synsets = [
        ["cell"],
        ["cell", "jail cell", "prison cell"],
        ["house"],
        ["house"],
        ["prison cell", "cell"],
        ["jail cell", "house"],
    ]
    monkeypatch.setattr(built_in, "imagenet21k_lemmas", lambda: synsets)
    assert imagenet21k() == [
        MetadataEntry("cell"),
        MetadataEntry("jail cell", ("cell", "prison cell")),
        MetadataEntry("house"),
        MetadataEntry("prison cell", ("cell",)),
    ]


def test_a_built_in_list_that_is_written_as_a_file_is_read_back_the_same() -> None:
    entries = imagenet21k()
    assert parse_entries(map(format_entry, entries)) == entries
    tasks = multi_task()
    assert parse_entries(map(format_entry, tasks)) == tasks


def test_a_library_without_its_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(libraries, "_package_folder", lambda module, requirement: tmp_path)
    with pytest.raises(ConfigError, match=r"imagenet22k_synsets\.txt is missing from its library"):
        imagenet21k()
