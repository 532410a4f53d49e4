"""Which line of a class list belongs to which class folder."""

from pathlib import Path

import pytest

from cit_curate.errors import ConfigError
from cit_train.evaluation.readers.class_list import NamedLabels, name_labels
from cit_train.evaluation.readers.labelled_images import DEFAULT_FLAGS, Flags

NUMBERS = tuple(map(str, range(12)))
COLOURS = [
    "ash",
    "beige",
    "coral",
    "denim",
    "ecru",
    "fawn",
    "green",
    "hazel",
    "ivory",
    "jade",
    "khaki",
    "lilac",
]


def named(
    tmp_path: Path, labels: tuple[str, ...], text: str, suffix: str = ".txt", **options: bool
) -> NamedLabels:
    path = tmp_path / f"list{suffix}"
    path.write_text(text, encoding="utf-8")
    return name_labels(labels, path, where=tmp_path / "data", flags=DEFAULT_FLAGS, **options)


def names_of(result: NamedLabels) -> list[str]:
    return [result.classes[position].name for position in result.positions]


def test_numbered_folders_count_the_lines_from_0(tmp_path: Path) -> None:
    result = named(tmp_path, NUMBERS, "\n".join(COLOURS))
    assert names_of(result) == COLOURS
    assert result.naming == ("list.txt: 12 classes: ash, beige, coral, …; matched by number from 0")
    assert result.notes == ()


@pytest.mark.parametrize("form", ["{:02}", "{:05}", "class_{}", "class{:03}", "C{}"])
def test_numbers_may_have_zeros_or_a_word_before_them(form: str, tmp_path: Path) -> None:
    labels = tuple(form.format(number) for number in range(12))
    assert names_of(named(tmp_path, labels, "\n".join(COLOURS))) == COLOURS


def test_numbers_from_1_end_with_the_last_line(tmp_path: Path) -> None:
    labels = tuple(f"{number:02}" for number in range(1, 13))
    result = named(tmp_path, labels, "\n".join(COLOURS))
    assert names_of(result) == COLOURS
    assert result.naming.endswith("matched by number from 1")
    gap = named(tmp_path, ("3", "12"), "\n".join(COLOURS))
    assert names_of(gap) == ["coral", "lilac"]


def test_a_number_without_a_folder_shifts_no_name(tmp_path: Path) -> None:
    result = named(tmp_path, ("0", "2", "11"), "\n".join(COLOURS))
    assert names_of(result) == ["ash", "coral", "lilac"]
    assert len(result.classes) == 12
    assert "9 of the 12 classes in list.txt have no pictures" in result.notes[0]


def test_numbers_that_may_count_from_0_or_from_1_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(1, 2\) may count from 0 or from 1"):
        named(tmp_path, ("1", "2"), "ash\nbeige\ncoral\n")


def test_years_are_no_numbers_of_lines(tmp_path: Path) -> None:
    assert names_of(named(tmp_path, ("1999", "2024"), "old\nnew\n")) == ["old", "new"]


@pytest.mark.parametrize(
    "labels", [("snow_goose", "Auk", "barn owl"), ("7.Snow-Goose", "auk", "Barn_Owl")]
)
def test_names_that_differ_in_case_and_punctuation_only_are_the_same(
    labels: tuple[str, ...], tmp_path: Path
) -> None:
    result = named(tmp_path, labels, "auk\nBarn Owl | strix\nsnow goose\n")
    assert names_of(result) == ["snow goose", "auk", "Barn Owl"]
    assert result.naming.endswith("matched by name")


def test_a_synonym_names_a_folder_too(tmp_path: Path) -> None:
    assert names_of(named(tmp_path, ("alcid", "owl"), "owl\nauk | alcid\n")) == ["auk", "owl"]


def test_further_names_are_choices_without_pictures(tmp_path: Path) -> None:
    result = named(tmp_path, ("owl", "auk"), "auk\ngull\nowl\n")
    assert (len(result.classes), result.positions) == (3, (2, 0))
    assert "1 of the 3 classes" in result.notes[0]


@pytest.mark.parametrize("between", [" ", "\t", ": ", ",", " = "])
def test_a_line_that_begins_with_an_identifier_is_that_folders(
    between: str, tmp_path: Path
) -> None:
    text = f"n02121808{between}house cat\nn02084071{between}dog\n"
    result = named(tmp_path, ("n02084071", "n02121808"), text)
    assert names_of(result) == ["dog", "house cat"]
    text = f"1{between}beige\n0{between}ash grey\n"
    assert names_of(named(tmp_path, ("0", "1"), text)) == ["ash grey", "beige"]


def test_wordnet_folders_take_plain_names_in_sorted_order(tmp_path: Path) -> None:
    result = named(tmp_path, ("n01503061", "n02084071", "n02121808"), "bird\ndog\ncat\n")
    assert names_of(result) == ["bird", "dog", "cat"]
    assert result.naming.endswith("matched in the order of the sorted folders")


def test_an_object_and_tables_name_the_folders_themselves(tmp_path: Path) -> None:
    labels = ("n02084071", "n02121808")
    text = '{"n02121808": "cat", "n02084071": "dog"}'
    assert names_of(named(tmp_path, labels, text, ".json")) == ["dog", "cat"]
    for suffix, comma in ((".csv", ","), (".tsv", "\t")):
        text = "folder,class\nn02121808,cat\nn02084071,dog\n".replace(",", comma)
        assert names_of(named(tmp_path, labels, text, suffix)) == ["dog", "cat"]


def test_a_table_of_one_column_is_a_list(tmp_path: Path) -> None:
    assert names_of(named(tmp_path, ("owl", "auk"), "name\nauk\nowl\n", ".csv")) == ["owl", "auk"]


def test_two_classes_may_have_one_name(tmp_path: Path) -> None:
    result = named(tmp_path, ("n1a", "n2a", "n3a"), "crane\ngull\ncrane\n")
    assert names_of(result) == ["crane", "gull", "crane"]


@pytest.mark.parametrize(
    ("labels", "text", "message"),
    [
        (("auk", "owl", "tern"), "owl\nauk\nturn\n", "names 2 of the 3 .*not tern; .*'turn'"),
        (("auk", "owl"), "owl\nhawk\ngull\n", "names 1 of the 2 .* not auk"),
        (("Auk", "auk"), "AUK\nowl\n", r"two of the 2 classes .*\(Auk, auk\) have one name"),
        (("auk", "owl"), "a\nb\nc\n", r"names 3 classes, and .* has 2 class folders \(auk, owl\)"),
        (NUMBERS, "ash\nbeige\n", "names 2 classes, and .* has 12 class folders"),
        (("auk", "owl"), "\n# nothing\n", "holds no class name"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    labels: tuple[str, ...], text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        named(tmp_path, labels, text)


def test_names_in_the_folders_order_may_differ_here_and_there(tmp_path: Path) -> None:
    assert names_of(named(tmp_path, ("auk", "bee", "owl"), "auk\nhoney bee\nowl\n")) == [
        "auk", "honey bee", "owl",
    ]  # fmt: skip


def test_labels_that_are_no_folders_have_no_order(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 2 labels"):
        named(tmp_path, ("a1", "b2"), "auk\nowl\n", are_folders=False)


def test_the_option_that_was_given_is_named(tmp_path: Path) -> None:
    flags = Flags(classes="--eval-classes")
    with pytest.raises(ConfigError, match="--eval-classes: there is no file"):
        name_labels(("auk",), tmp_path / "none.txt", where=tmp_path, flags=flags)
