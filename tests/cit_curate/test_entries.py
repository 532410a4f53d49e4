"""Metadata files: entries, synonyms, and what is wrong with them."""

import logging
from pathlib import Path

import pytest

from cit_curate.config import MetadataConfig
from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import MetadataEntry, load_metadata, parse_entries


def test_a_line_is_a_name_and_its_synonyms_and_comments_are_left_out() -> None:
    lines = ["# animals", "cat | kitten |  ", "", "  road   sign", "C# developer"]
    assert parse_entries(lines) == [
        MetadataEntry("cat", ("kitten",)),
        MetadataEntry("road sign"),
        MetadataEntry("C# developer"),
    ]


def test_an_entry_that_comes_again_is_merged_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # FAULTS: E3
    with caplog.at_level(logging.WARNING):
        entries = parse_entries(["cat|kitten", "dog", "cat|tomcat|kitten"])
    assert entries == [MetadataEntry("cat", ("kitten", "tomcat")), MetadataEntry("dog")]
    assert "'cat' comes twice" in caplog.text


def test_every_name_goes_through_every_template() -> None:
    entry = MetadataEntry("cat", ("kitten",))
    assert entry.texts(["a {}", "{}s"]) == ["a cat", "cats", "a kitten", "kittens"]


def test_a_column_of_a_csv_is_read_and_a_wrong_one_named(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("name,number\ncat,1\ndog,2\n")
    config = MetadataConfig(metadata=str(path), metadata_column="name")
    assert [entry.name for entry in load_metadata(config)] == ["cat", "dog"]
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        load_metadata(MetadataConfig(metadata=str(path), metadata_column="nmae"))


@pytest.mark.parametrize("content", [b"", b"\n# only a comment\n"])
def test_no_entries_is_an_error(tmp_path: Path, content: bytes) -> None:
    # FAULTS: E3
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no class name"):
        load_metadata(MetadataConfig(metadata=str(path)))


def test_a_missing_file_and_one_that_is_no_utf8_are_named(tmp_path: Path) -> None:
    # FAULTS: G1
    with pytest.raises(ConfigError, match="there is no file"):
        load_metadata(MetadataConfig(metadata=str(tmp_path / "gone.txt")))
    path = tmp_path / "latin.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_metadata(MetadataConfig(metadata=str(path)))


def test_a_template_without_a_place_for_the_name_is_refused() -> None:
    # FAULTS: E3
    with pytest.raises(ConfigError, match=r"needs \{\} once"):
        MetadataConfig(metadata="x", templates=("a photo",))
    with pytest.raises(ConfigError, match="is empty"):
        MetadataConfig(metadata="x", templates=())
