"""The line that says which classes were read."""

import pytest

from cit_curate.config import MetadataConfig
from cit_curate.metadata.built_in import BUILT_IN_NAMES
from cit_curate.metadata.class_list import ClassList, class_line
from cit_curate.metadata.entries import read_metadata
from cit_curate.metadata.lines import MetadataEntry, format_entry


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["owl"], "a.txt: 1 class: owl"),
        (["owl", "ferry", "gate"], "a.txt: 3 classes: owl, ferry, gate"),
        (["owl", "ferry", "gate", "x"], "a.txt: 4 classes: owl, ferry, gate, …"),
        (["owl"] * 1_234, "a.txt: 1,234 classes: owl, owl, owl, …"),
        (["o" * 99], f"a.txt: 1 class: {'o' * 59}…"),
    ],
)
def test_the_line_has_file_number_and_first_names(names: list[str], line: str) -> None:
    assert class_line("a.txt", names) == line


def test_notes_follow_in_brackets_and_warnings_in_lines_of_their_own() -> None:
    entries = (MetadataEntry("owl"), MetadataEntry("owl", ("bird",)))
    classes = ClassList(name="a.csv", entries=entries, notes=("no header", "quotes left out"))
    assert classes.lines == ("a.csv: 2 classes: owl, owl (no header; quotes left out)",)
    assert classes.merged().lines == (
        "a.csv: 1 class: owl (no header; quotes left out)",
        "WARNING: a.csv: 'owl' is repeated; its occurrences are merged",
    )


@pytest.mark.parametrize("name", BUILT_IN_NAMES)
def test_a_built_in_list_as_a_file_is_the_same_list_without_a_note(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    built_in = read_metadata(MetadataConfig(metadata=name))
    path = tmp_path_factory.mktemp("lists") / "classes.txt"
    lines = map(format_entry, built_in.entries)
    path.write_text("\n".join([f"# {name}", *lines]), encoding="utf-8")
    read = read_metadata(MetadataConfig(metadata=str(path)))
    assert read.entries == built_in.entries
    assert read.notes == ()
