"""Class names in JSON: the shapes that leave no doubt, and those that are refused."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.errors import ConfigError
from cit_curate.metadata.class_list import ClassList
from cit_curate.metadata.lines import MetadataEntry

Read = Callable[..., ClassList]
THREE = ["spoon", "ferry", "owl"]


def names_of(classes: ClassList) -> list[str]:
    return [entry.name for entry in classes.entries]


@pytest.mark.parametrize(
    "value",
    [
        THREE,
        {"2": "owl", "0": "spoon", "1": "ferry"},
        {"0": ["y1", "spoon"], "1": ["y2", 7, "ferry"], "10": ["owl"]},
        {"n00000003": "spoon", "n00000001": "ferry", "n00000002": "owl"},
        {"owl": 2, "spoon": 0, "ferry": 1},
        {"owl": 3, "spoon": 1, "ferry": 2},
        {"names": THREE},
        {"names": {"0": "spoon", "1": "ferry", "2": "owl"}},
        [{"id": 4, "name": "spoon"}, {"id": 9, "name": "ferry"}, {"name": "owl"}],
        {"categories": [{"id": 4, "name": name} for name in THREE]},
    ],
)
@pytest.mark.parametrize("name", ["names.json", "names.txt", "names.csv"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_shape_that_leaves_no_doubt_is_read_whatever_the_suffix(
    read: Read, name: str, value: object, indent: int | None
) -> None:
    assert names_of(read(name, json.dumps(value, indent=indent))) == THREE


@pytest.mark.parametrize("name", ["names.jsonl", "names.ndjson", "names.json", "names.txt"])
def test_json_lines_have_their_names_in_the_one_column_of_texts(read: Read, name: str) -> None:
    content = "\n\n".join(json.dumps({"id": at, "word": each}) for at, each in enumerate(THREE))
    classes = read(name, content)
    assert names_of(classes) == THREE
    assert classes.notes == ("column 'word'",)


def test_json_lines_of_several_columns_are_asked_for_one(read: Read) -> None:
    content = "\n".join(json.dumps({"key": f"k{at}", "word": at_}) for at, at_ in enumerate(THREE))
    with pytest.raises(ConfigError, match=r"--metadata-column; it has key, word"):
        read("names.jsonl", content)
    assert names_of(read("names.jsonl", content, "word")) == THREE
    with pytest.raises(ConfigError, match=r"no column 'nope'; it has key, word"):
        read("names.jsonl", content, "nope")


def test_json_lines_of_texts_and_of_one_object_are_read(read: Read) -> None:
    assert names_of(read("names.jsonl", "\n".join(map(json.dumps, THREE)))) == THREE
    assert names_of(read("names.jsonl", '{"name": "owl"}\n')) == ["owl"]


def test_a_name_in_json_is_read_like_a_line_but_is_never_a_comment(read: Read) -> None:
    classes = read("names.json", '["owl | night  bird", "#1 fan", "\\ud800x", "1. a", "- b"]')
    assert classes.entries[:3] == (
        MetadataEntry("owl", ("night bird",)),
        MetadataEntry("#1 fan"),
        MetadataEntry("\ufffdx"),
    )
    assert names_of(classes)[3:] == ["1. a", "- b"]


def test_equal_names_by_index_are_merged_with_a_warning(read: Read) -> None:
    value = {"3": "a spoon", "2": "an owl", "1": "a spoon", "0": "an owl"}
    merged = read("names.json", json.dumps(value)).merged()
    assert names_of(merged) == ["an owl", "a spoon"]
    assert "repeated names are merged: 'an owl', 'a spoon'" in merged.warnings[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no class name"),
        ("{}", "holds no class name"),
        ('["owl", 3]', "element 1 is 3 and not a text"),
        ('["owl", null]', "element 1 is null"),
        ('["owl", " | "]', "element 1 is empty"),
        ('[["owl", "night bird"]]', "element 0 is"),
        ('{"0": "owl", "0": "ferry"}', "the key '0' twice"),
        ('{"1": "owl", "01": "ferry"}', "an index comes twice"),
        ('{"0": {"name": "owl"}}', "the value of '0' is"),
        ('{"0": [1, 2]}', "the value of '0' is"),
        ('{"owl": "night bird", "ferry": "boat"}', "which of it are the class names is not clear"),
        ('{"owl": 1, "ferry": 1}', "is not clear"),
        ('{"images": [], "categories": [{"name": "owl"}]}', "'images', 'categories'"),
        ('[{"id": 1}, {"id": 2}]', "no column of texts"),
        ('[{"name": "owl"}, {"id": 2}]', "'name' of object 1 is null"),
        ('[{"name": "owl"}, "ferry"]', "element 0 is"),
        ("[" * 50_000, "is not JSON"),
        ('{"' + "9" * 5_000 + '": "owl"}', "is not clear"),
    ],
)
def test_another_shape_is_refused(read: Read, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read("names.json", content)


def test_a_column_of_what_has_none_is_refused(read: Read) -> None:
    with pytest.raises(ConfigError, match="holds no objects, so it has no column 'name'"):
        read("names.json", '["owl"]', "name")


@settings(max_examples=30)
@given(st.lists(st.text().filter(lambda text: text.replace("|", "").strip()), min_size=1))
def test_any_array_of_names_is_read_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    from cit_curate.metadata.class_files.read import read_class_file
    from cit_curate.metadata.lines import parse_entries

    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(names), encoding="utf-8")
    assert list(read_class_file(path).entries) == parse_entries(names, comments=False)
