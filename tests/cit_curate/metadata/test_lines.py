"""The metadata file: entries, synonyms, comments, tables, and what is wrong with them."""

import csv
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.errors import ConfigError
from cit_curate.metadata.lines import (
    MetadataEntry,
    format_entry,
    merge_entries,
    parse_entries,
    read_entries,
)

NAMES = st.text(st.characters(exclude_characters="|", exclude_categories=("Cs",)), min_size=1).map(
    lambda text: " ".join(text.split())
)
ENTRIES = st.lists(NAMES.filter(bool), min_size=1, max_size=4, unique=True).map(
    lambda names: MetadataEntry(names[0], tuple(names[1:]))
)


def test_a_line_is_a_name_and_its_synonyms_and_comments_are_left_out() -> None:
    lines = ["# animals", "cat | kitten |  ", "", "  road   sign", "C# developer", "  # indented"]
    assert parse_entries(lines) == [
        MetadataEntry("cat", ("kitten",)),
        MetadataEntry("road sign"),
        MetadataEntry("C# developer"),
    ]


@pytest.mark.faults("E3")
def test_an_entry_that_comes_again_is_merged_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        entries = parse_entries(["cat|kitten", "dog", "cat|tomcat|kitten"])
    assert entries == [MetadataEntry("cat", ("kitten", "tomcat")), MetadataEntry("dog")]
    assert "'cat' is repeated" in caplog.text


def test_many_entries_that_come_again_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(parse_entries([f"class {n}" for n in range(9)] * 3)) == 9
    assert len(caplog.records) == 1
    assert "'class 0', 'class 1'" in caplog.text
    assert "and 4 more" in caplog.text


def test_merging_keeps_the_first_place_all_synonyms_and_all_prompts() -> None:
    entries = [
        MetadataEntry("crane", ("grus",), ("a bird: {}",)),
        MetadataEntry("dog"),
        MetadataEntry("crane", ("derrick", "grus"), ("a machine: {}", "a bird: {}")),
    ]
    assert merge_entries(entries) == [
        MetadataEntry("crane", ("grus", "derrick"), ("a bird: {}", "a machine: {}")),
        MetadataEntry("dog"),
    ]


def test_every_name_goes_through_every_template() -> None:
    entry = MetadataEntry("cat", ("kitten",))
    assert entry.texts(["a {}", "{}s"]) == ["a cat", "cats", "a kitten", "kittens"]


def test_an_entry_with_prompts_of_its_own_leaves_the_templates_aside() -> None:
    entry = MetadataEntry("cat", ("kitten",), ("the {}",))
    assert entry.texts(["a {}", "{}s"]) == ["the cat", "the kitten"]


@given(ENTRIES)
def test_the_line_of_an_entry_is_read_as_that_entry(entry: MetadataEntry) -> None:
    assert parse_entries([format_entry(entry)]) == [entry]


def test_a_column_of_a_table_is_read_and_its_cells_are_never_comments(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text('\ufeffid,name\r\n1,"cat | kitten"\r\n2,#1 fan\r\n3,\r\n4,"dog, small"\r\n')
    expected = [
        MetadataEntry("cat", ("kitten",)),
        MetadataEntry("#1 fan"),
        MetadataEntry("dog, small"),
    ]
    assert read_entries(path, "name") == expected
    with pytest.raises(ConfigError, match=r"name the column.* it has id, name"):
        read_entries(path)


def test_a_tsv_with_one_column_needs_no_column_name(tmp_path: Path) -> None:
    path = tmp_path / "classes.tsv"
    path.write_text("name\ncat\ndog\n")
    assert [entry.name for entry in read_entries(path)] == ["cat", "dog"]


@pytest.mark.faults("G1")
def test_a_table_that_cannot_be_read_names_its_place(tmp_path: Path) -> None:
    limit = csv.field_size_limit(100_000)  # a pool that this process built has raised it
    path = tmp_path / "classes.csv"
    path.write_text("name\ncat\n" + "x" * 200_000 + "\n")
    try:
        with pytest.raises(ConfigError, match=r"classes.csv, after line 2: not a table: field lar"):
            read_entries(path)
    finally:
        csv.field_size_limit(limit)
