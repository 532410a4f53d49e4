"""Class names in a CSV or TSV: its delimiter, its header, its column, and what is wrong with it."""

import csv
from collections.abc import Callable

import pytest

from cit_curate.errors import ConfigError
from cit_curate.metadata.class_list import ClassList
from cit_curate.metadata.lines import MetadataEntry

Read = Callable[..., ClassList]


def names_of(classes: ClassList) -> list[str]:
    return [entry.name for entry in classes.entries]


@pytest.mark.parametrize("name", ["names.csv", "NAMES.CSV", "names.tsv", "names.Tsv", "names.txt"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_table_of_any_delimiter_is_asked_for_its_column(read: Read, name: str, mark: str) -> None:
    content = f"id{mark} Name\n7{mark}owl\n9{mark}ferry\n"
    with pytest.raises(ConfigError, match=r"name the column .* --metadata-column; it has id, Name"):
        read(name, content)
    assert names_of(read(name, content, "Name")) == ["owl", "ferry"]


def test_a_column_is_read_and_its_cells_are_never_comments(read: Read) -> None:
    content = '\ufeffid,name\r\n1,"owl | night bird"\r\n2,#1 fan\r\n3,\r\n4,"dog, small"\r\n'
    classes = read("names.csv", content, "name")
    assert classes.entries == (
        MetadataEntry("owl", ("night bird",)),
        MetadataEntry("#1 fan"),
        MetadataEntry("dog, small"),
    )
    assert classes.notes == ("1 empty cell left out, the first in line 4",)


@pytest.mark.parametrize("header", ["name", "NAMES", "Class_Name", "category", " label "])
def test_a_word_that_headers_have_is_the_header(read: Read, header: str) -> None:
    classes = read("names.csv", f"{header}\nowl\nferry\n")
    assert names_of(classes) == ["owl", "ferry"]
    assert classes.notes == ()


@pytest.mark.parametrize("name", ["names.csv", "names.tsv", "names.TSV"])
def test_the_first_class_is_never_taken_as_a_header(read: Read, name: str) -> None:
    classes = read(name, "owl\nferry\ngate | door\n")
    assert names_of(classes) == ["owl", "ferry", "gate"]
    assert classes.notes == ("no header: the first line is a class",)
    assert names_of(read(name, "owl\nferry\ngate\n", "owl")) == ["ferry", "gate"]


@pytest.mark.parametrize("content", ["0,owl\n1,ferry\n", "n00000001,owl\nn00000007,ferry\n"])
def test_numbers_and_ids_beside_the_names_need_no_column(read: Read, content: str) -> None:
    classes = read("names.csv", content)
    assert names_of(classes) == ["owl", "ferry"]
    assert "left out" in classes.notes[0]


def test_the_line_of_excel_that_names_the_delimiter_is_no_row(read: Read) -> None:
    assert names_of(read("names.csv", "sep=;\nid;name\n0;owl\n", "name")) == ["owl"]


def test_commas_at_the_ends_are_no_column(read: Read) -> None:
    assert names_of(read("names.csv", "owl,\nferry,\n")) == ["owl", "ferry"]


def test_synonyms_are_no_columns(read: Read) -> None:
    classes = read("names.csv", "owl | night bird\nferry | boat\n")
    assert classes.entries[0] == MetadataEntry("owl", ("night bird",))


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("id,name\n0,owl\n", "nmae", r"--metadata-column: .* no column 'nmae'; .*mean 'name'"),
        ("name,name\na,b\n", "name", "several columns 'name'"),
        ("name\nowl, night bird\n", "", r"names\.csv:2: 2 cells, and the first line has 1"),
        ("owl, night bird\nferry\n", "", "it has owl, night bird.*without a header"),
        ('name\n"owl\nferry\ngate\n', "", r"names\.csv:2: a quote opens here.* for 3 lines"),
        ('id,name\n0,"owl\n1,ferry\n2,gate"\n', "name", r"names\.csv:2: a quote opens here"),
        ("name\n", "", "holds no class name"),
        ("", "", "holds no class name"),
        ("", "name", "no column 'name'; it has none"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(
    read: Read, content: str, column: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read("names.csv", content, column)


def test_a_cell_of_several_lines_beside_the_names_is_read(read: Read) -> None:
    content = 'id,note,name\n0,"first\nsecond",owl\n1,third,ferry\n'
    assert names_of(read("names.csv", content, "name")) == ["owl", "ferry"]


@pytest.mark.faults("G1")
def test_a_table_that_cannot_be_read_names_its_place(read: Read) -> None:
    limit = csv.field_size_limit(100_000)  # a pool that this process built has raised it
    try:
        with pytest.raises(ConfigError, match=r"classes.csv, after line 2: not a table: field lar"):
            read("classes.csv", "name\ncat\n" + "x" * 200_000 + "\n")
    finally:
        csv.field_size_limit(limit)
