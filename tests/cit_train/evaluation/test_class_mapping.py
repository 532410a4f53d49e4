"""Class mapping files: names, positions, and classes that become one."""

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import MetadataEntry
from cit_train.evaluation.class_mapping import map_classes, plain_labels

CLASSES = [MetadataEntry(name) for name in ("tench", "great white shark", "hen", "7")]
NAMES = st.text(st.characters(categories=["L"]), min_size=1, max_size=6)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_mapping_every_class_has_its_own_name() -> None:
    labels = plain_labels(CLASSES)
    assert labels.labels == ("tench", "great white shark", "hen", "7")
    assert labels.label_of == (0, 1, 2, 3)


def test_classes_are_named_by_name_or_position_and_may_share_a_label(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv", 'class,label\ntench,fish\n"great  white shark",fish\n2,n01514668\n'
    )
    labels = map_classes(CLASSES, path)
    assert labels.labels == ("fish", "n01514668", "7")
    assert labels.label_of == (0, 0, 1, 2)
    assert labels.unmapped == ("7",)
    assert labels.unmatched == ()


def test_a_name_goes_before_a_position(tmp_path: Path) -> None:
    classes = [MetadataEntry("1"), MetadataEntry("0")]
    path = write(tmp_path / "m.json", '{"0": "zero", "1": "one"}')
    assert map_classes(classes, path).labels == ("one", "zero")


def test_a_json_list_is_in_the_order_of_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "m.json", '["a", "b", "a", "c"]')
    labels = map_classes(CLASSES, path)
    assert (labels.labels, labels.label_of) == (("a", "b", "c"), (0, 1, 0, 2))


@given(mapping=st.dictionaries(NAMES, NAMES, min_size=1, max_size=8))
def test_csv_tsv_and_json_say_the_same(mapping: dict[str, str]) -> None:
    classes = [MetadataEntry(name) for name in mapping]
    found = []
    with tempfile.TemporaryDirectory() as made:
        for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
            path = Path(made, f"m{suffix}")
            with path.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream, delimiter=delimiter)
                writer.writerows([("class", "label"), *mapping.items()])
            found.append(map_classes(classes, path))
        found.append(map_classes(classes, write(Path(made, "m.json"), json.dumps(mapping))))
    assert found[0] == found[1] == found[2]
    assert [found[0].labels[at] for at in found[0].label_of] == list(mapping.values())


def test_what_a_mapping_names_in_vain_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "m.json", '{"tench": "fish", "henn": "bird", "12": "x"}')
    assert map_classes(CLASSES, path).unmatched == ("henn", "12")
    only = write(tmp_path / "n.json", '{"tensch": "fish"}')
    with pytest.raises(ConfigError, match=r"names none of the 4 classes.*did you mean 'tench'"):
        map_classes(CLASSES, only)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "a,b\n1,2\n", "needs the columns class and label"),
        ("m.csv", "class,label\ntench,\n", "m.csv:2: class or label is empty"),
        ("m.csv", "class,label\nhen,a\nhen,b\n", "m.csv:3: 'hen' is 'b' here and 'a' before"),
        ("m.json", '{"hen": "a", "hen": "b"}', "'hen' is 'b' here and 'a' before"),
        ("m.json", '{"hen": ["a"]}', "not a text"),
        ("m.json", '["a"]', "lists 1 labels for 4 classes"),
        ("m.json", "3", "neither an object"),
        ("m.json", "{", "is not JSON"),
        ("m.json", "[" * 100_000, "is not JSON"),
        ("m.txt", "hen a", "neither .csv, .tsv nor .json"),
    ],
)
def test_a_wrong_mapping_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        map_classes(CLASSES, write(tmp_path / name, text))


def test_a_missing_mapping_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        map_classes(CLASSES, tmp_path / "none.csv")
