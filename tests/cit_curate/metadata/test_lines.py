"""The lines of a list of class names: entries, synonyms, comments, and how equal ones merge."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.config import MetadataConfig
from cit_curate.metadata.entries import load_metadata
from cit_curate.metadata.lines import MetadataEntry, format_entry, merge_entries, parse_entries

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


def test_entries_of_one_name_stay_apart_until_they_are_merged() -> None:
    entries = parse_entries(["cat|kitten", "dog", "cat|tomcat|kitten"])
    assert [entry.name for entry in entries] == ["cat", "dog", "cat"]
    assert merge_entries(entries) == [MetadataEntry("cat", ("kitten", "tomcat")), entries[1]]


@pytest.mark.faults("E3")
def test_an_entry_that_comes_again_is_merged_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("cat|kitten\ndog\ncat|tomcat\n")
    with caplog.at_level(logging.WARNING):
        entries = load_metadata(MetadataConfig(metadata=str(path)))
    assert entries == [MetadataEntry("cat", ("kitten", "tomcat")), MetadataEntry("dog")]
    assert "'cat' is repeated" in caplog.text


def test_many_entries_that_come_again_are_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join([f"class {'abcdefghi'[n]}" for n in range(9)] * 3))
    with caplog.at_level(logging.WARNING):
        assert len(load_metadata(MetadataConfig(metadata=str(path)))) == 9
    assert len(caplog.records) == 1
    assert "'class a', 'class b'" in caplog.text
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
