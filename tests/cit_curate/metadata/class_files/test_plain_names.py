"""One name a line: what is left out around all names, and what is read with a warning."""

from collections.abc import Callable

import pytest

from cit_curate.errors import ConfigError
from cit_curate.metadata.class_list import ClassList
from cit_curate.metadata.lines import MetadataEntry

Read = Callable[..., ClassList]
THREE = ["spoon", "ferry", "owl"]


def names_of(classes: ClassList) -> list[str]:
    return [entry.name for entry in classes.entries]


def test_a_plain_list_is_read_without_a_note(read: Read) -> None:
    classes = read("classes.txt", "# kitchen\n\n  spoon \nferry | boat\n\nowl")
    assert classes.entries[1] == MetadataEntry("ferry", ("boat",))
    assert names_of(classes) == THREE
    assert classes.notes == classes.warnings == ()


@pytest.mark.parametrize(
    "content",
    [
        "spoon\r\nferry\r\nowl\r\n",
        "spoon\rferry\rowl\r",
        "\ufeffspoon\nferry\nowl",
        "spoon\nferry\nowl\n".encode("utf-16"),
        "spoon\nferry\nowl\n".encode("utf-32"),
        "\n\nspoon\n\n\nferry\nowl\n \n",
    ],
)
def test_line_ends_marks_and_blank_lines_change_nothing(read: Read, content: str | bytes) -> None:
    classes = read("classes.txt", content)
    assert names_of(classes) == THREE
    assert classes.notes == classes.warnings == ()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("0 spoon\n1 ferry\n2 owl\n", "running numbers 0 to 2"),
        ("1: spoon\n2: ferry\n3: owl\n", "running numbers 1 to 3"),
        ("7:spoon\n8:ferry\n9:owl\n", "running numbers 7 to 9"),
        ("1. spoon\n2. ferry\n3. owl\n", "running numbers 1 to 3"),
        ("1) spoon\n2) ferry\n3) owl\n", "running numbers"),
        ("000\tspoon\n001\tferry\n002\towl\n", "running numbers 0 to 2"),
        ("0,spoon\n1,ferry\n2,owl\n", "running numbers"),
        ("0 - spoon\n1 - ferry\n2 - owl\n", "running numbers"),
        ("1 001.spoon\n2 002.ferry\n3 003.owl\n", "running numbers 1 to 3"),
        ("n00000001 spoon\nn00000005 ferry\nn00000003 owl\n", "WordNet ids"),
        ("n00000001\tspoon\nn00000005\tferry\nn00000003\towl\n", "WordNet ids"),
        ("n00000001 1 spoon\nn00000005 2 ferry\nn00000003 3 owl\n", "running numbers"),
        ("- spoon\n- ferry\n- owl\n", "bullets"),
        ("# Things\n\n* spoon\n* ferry\n* owl\n", "bullets"),
        ('"spoon"\n"ferry"\n"owl"\n', "quotes"),
        ("'spoon',\n'ferry',\n'owl'\n", "quotes"),
        ("“spoon”\n“ferry”\n“owl”\n", "quotes"),
        ("spoon,\nferry,\nowl,\n", "commas at the ends"),
        ("spoon;\nferry;\nowl\n", "semicolons at the ends"),
        ("0: 'spoon',\n1: 'ferry',\n2: 'owl'\n", "running numbers 0 to 2"),
    ],
)
def test_what_stands_around_every_name_is_left_out_and_said(
    read: Read, content: str, note: str
) -> None:
    classes = read("classes.txt", content)
    assert names_of(classes) == THREE
    assert note in " ".join(classes.notes)
    assert classes.warnings == ()


def test_further_names_of_a_wordnet_id_are_synonyms(read: Read) -> None:
    classes = read("synsets.txt", "n00000001 owl, night bird\nn00000002 ferry\n")
    assert classes.entries == (MetadataEntry("owl", ("night bird",)), MetadataEntry("ferry"))


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        ("1 cup\n2 cups\n3 cups\n", "begins with a number, such as '1 cup'"),
        ("0: spoon\n3: ferry\n", "begins with a number"),
        ("5 spoon\n6 ferry\n7 owl\n", "begins with a number"),
        ("0 | zero\n1 | one\n", "every name is a number"),
        ("spoon 0\nferry 1\nowl 2\n", "end in running numbers"),
        ("n00000001 spoon\nferry\n", "1 of 2 lines begin with a WordNet id"),
        ("Things\n- spoon\n- ferry\n", "2 of 3 lines begin with a bullet"),
        ('"spoon"\nferry\n', "1 of 2 lines are in quotes"),
        ("spoon,\nferry\nowl\n", "1 of 3 lines end with a comma"),
        ("spoon, ladle,\nferry, boat,\n", "2 of 2 names hold commas"),
        ("a, b, c, d, e\nferry\nowl\n", "1 of 3 names hold commas"),
        ("spoon\tladle\nferry\n", "1 of 2 lines hold a tab"),
        ("Apple: scab\nOak: mildew\n", "every line holds a colon"),
        ("names\nspoon\nferry\n", "'names', is read as a class and not as a header"),
    ],
)
def test_what_stands_around_some_names_stays_with_a_warning(
    read: Read, content: str, warning: str
) -> None:
    classes = read("classes.txt", content)
    lines = [" ".join(line.split("|")[0].split()) for line in content.splitlines()]
    assert names_of(classes) == lines
    assert any(warning in each and "classes.txt" in each for each in classes.warnings)


def test_one_line_of_commas_is_one_class_with_a_warning(read: Read) -> None:
    classes = read("classes.txt", "spoon, ferry, owl, gate\n")
    assert names_of(classes) == ["spoon, ferry, owl, gate"]
    (warning,) = classes.warnings
    assert "one class whose name holds 3 commas; put one name a line" in warning


@pytest.mark.parametrize(
    "content",
    [
        "owl\nBonaire, Saint Eustatius and Saba\ngate",
        "1900s house\nowl\n",
        "2010 Audi\nferry 3\n",
        "10:30 train\n11:30 train\n",
        "1.5 litre bottle\n2.5 litre bottle\n",
        "[unknown]\nowl\n",
        "0\n1\n2\n",
        "rock 'n' roll\nowl\n",
    ],
)
def test_names_that_only_look_unusual_are_plain(read: Read, content: str) -> None:
    classes = read("classes.txt", content)
    assert names_of(classes) == content.split("\n")[: len(classes.entries)]
    assert len(classes.entries) == len([line for line in content.split("\n") if line])
    assert classes.notes == classes.warnings == ()


def test_a_repeated_bullet_level_is_a_list_within_a_list(read: Read) -> None:
    with pytest.raises(ConfigError, match="a list within a list"):
        read("classes.txt", "- animals\n  - owl\n  - cat\n")


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_columns_in_a_text_file_are_asked_for(read: Read, mark: str) -> None:
    content = f"owl{mark}a bird\nferry{mark}a boat\n"
    with pytest.raises(ConfigError, match=r"--metadata-column; it has owl, a bird"):
        read("classes.txt", content)
    content = f"ID{mark}Name\n0{mark}owl\n1{mark}ferry\n"
    with pytest.raises(ConfigError, match=r"--metadata-column; it has ID, Name"):
        read("classes.txt", content)
    assert names_of(read("classes.txt", content, "Name")) == ["owl", "ferry"]


def test_a_list_of_22_thousand_names_is_read_at_once(read: Read) -> None:
    lines = [f"n{at:08} thing {at}, item {at}" for at in range(22_000)]
    assert len(read("synsets.txt", "\n".join(lines)).entries) == 22_000
    table = "\n".join(["id;name", *(f"{at};thing {at}" for at in range(22_000))])
    assert len(read("names.csv", table, "name").entries) == 22_000
