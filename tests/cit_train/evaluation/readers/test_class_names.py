import pytest

from cit_curate.metadata.entries import MetadataEntry
from cit_train.evaluation.readers.class_names import (
    find_name,
    in_natural_order,
    key_positions,
    numbering,
)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["0", "10", "9"], [0, 10, 9]),
        (["007", "012"], [7, 12]),
        (["class_2", "class_11"], [2, 11]),
        (["c0", "c1"], [0, 1]),
        (["1", "2", "owl"], None),
        (["class_2", "2"], None),
        (["A310", "A319"], None),
        (["n02084071", "n02121808"], None),
        (["1.5", "-2"], None),
    ],
)
def test_only_names_that_are_nothing_but_numbers_are_numbered(
    names: list[str], numbers: list[int] | None
) -> None:
    assert numbering(names) == numbers


def test_numbered_names_are_ordered_by_number_and_others_by_letter() -> None:
    assert in_natural_order(["10", "2", "0", "02"]) == ("0", "02", "2", "10")
    assert in_natural_order(["type 10", "type 2"]) == ("type 2", "type 10")
    assert in_natural_order(["owl 10", "owl 2"]) == ("owl 10", "owl 2")


def test_a_name_is_found_by_its_letters_and_digits() -> None:
    positions = key_positions([MetadataEntry("Snow Goose"), MetadataEntry("auk", ("alcid",))])
    for name, position in {
        "snow_goose": 0,
        "012.Snow-Goose": 0,
        "SNOWGOOSE": 0,
        "Alcid": 1,
        "goose": None,
    }.items():
        assert find_name(name, positions) == position, name


def test_a_name_that_two_classes_have_is_neither() -> None:
    assert key_positions([MetadataEntry("crane"), MetadataEntry("Crane")]) == {}
