import os
from pathlib import Path

import numpy as np
import pytest

from cit_curate.errors import BadInputError, ConfigError
from cit_curate.metadata.entries import MetadataEntry
from cit_train.evaluation.readers.image_folder import ImageFolder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes: `ant` with two images (one further below), `bee` without, `cat` with one."""
    folder = tmp_path / "task"
    for name in ("cat/1.JPG", "ant/sub/0.png", "ant/2.webp", "ant/notes.txt", "bee/README"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def classes_file(root: Path, text: str, name: str = "classes.txt") -> Path:
    path = root.parent / name
    path.write_text(text, encoding="utf-8")
    return path


def test_classes_are_the_sorted_sub_folders(root: Path) -> None:
    folder = ImageFolder.open(root)
    assert folder.folders == ("ant", "bee", "cat")
    assert folder.classes == (MetadataEntry("ant"), MetadataEntry("bee"), MetadataEntry("cat"))


def test_images_are_found_at_any_depth_in_order_of_class_and_path(root: Path) -> None:
    folder = ImageFolder.open(root)
    expected = (root / "ant/2.webp", root / "ant/sub/0.png", root / "cat/1.JPG")
    assert folder.paths == expected
    assert folder.targets.dtype == np.int64
    assert folder.targets.tolist() == [0, 0, 2]


def test_hidden_files_and_folders_are_ignored(root: Path) -> None:
    for name in (".git/1.png", "ant/.trash/1.png", "ant/._2.webp", "cat/.1.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    assert ImageFolder.open(root).folders == ("ant", "bee", "cat")
    assert len(ImageFolder.open(root).paths) == 3


def test_hard_links_are_images(root: Path) -> None:
    os.link(root / "cat/1.JPG", root / "bee/1.jpg")
    assert ImageFolder.open(root).targets.tolist() == [0, 0, 1, 2]


def test_links_to_folders_below_a_class_are_not_followed(root: Path) -> None:
    (root / "bee/ants").symlink_to(root / "ant", target_is_directory=True)
    assert len(ImageFolder.open(root).paths) == 3


def test_a_metadata_file_names_the_folders_line_by_line(root: Path) -> None:
    path = classes_file(root, "# insects\nan ant | emmet\n\na bee\nan ant\n")
    assert ImageFolder.open(root, path).classes == (
        MetadataEntry("an ant", ("emmet",)),
        MetadataEntry("a bee"),
        MetadataEntry("an ant"),
    )


def test_a_csv_names_the_folders_in_any_order(root: Path) -> None:
    text = 'class,folder\n"bee, honey | bumblebee",bee\nCAT,cat\nant,ant\n'
    path = classes_file(root, text, "classes.csv")
    assert ImageFolder.open(root, path).classes == (
        MetadataEntry("ant"),
        MetadataEntry("bee, honey", ("bumblebee",)),
        MetadataEntry("CAT"),
    )


@pytest.mark.parametrize("name", ["classes.CSV", "classes.tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_of_any_delimiter_names_the_folders(root: Path, name: str, mark: str) -> None:
    rows = (("folder", "class"), ("cat", "a cat"), ("ant", "#1 ant"), ("bee", "a bee"))
    path = classes_file(root, "\n".join(map(mark.join, rows)), name)
    folder = ImageFolder.open(root, path)
    assert [entry.name for entry in folder.classes] == ["#1 ant", "a bee", "a cat"]
    assert folder.naming.startswith(f"{name}: 3 classes: #1 ant, a bee, a cat; matched")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", '["an ant", "a bee", "a cat"]'),
        ("classes.json", '{"2": "a cat", "1": "a bee", "0": "an ant"}'),
        ("classes.csv", "class\nan ant\na bee\na cat\n"),
        ("classes.txt", "0 an ant\n1 a bee\n2 a cat\n"),
    ],
)
def test_what_metadata_takes_names_the_folders_in_order(root: Path, name: str, text: str) -> None:
    folder = ImageFolder.open(root, classes_file(root, text, name))
    assert [entry.name for entry in folder.classes] == ["an ant", "a bee", "a cat"]
    assert "3 classes: an ant, a bee, a cat; matched in the order" in folder.naming
    assert folder.labelled().naming == folder.source_images().naming == folder.naming


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        ImageFolder.open(tmp_path / "nowhere")


def test_a_folder_of_files_has_no_class(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no class folder but 1 files, such as 1\.jpg"):
        ImageFolder.open(tmp_path)


def test_an_empty_folder_has_no_class(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no class folder but nothing"):
        ImageFolder.open(tmp_path)


def test_class_folders_without_any_image_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    with pytest.raises(BadInputError, match="none of the 1 class folders"):
        ImageFolder.open(tmp_path)


def test_a_missing_classes_file_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        ImageFolder.open(root, root / "classes.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no class name"), ("a\nb\n", r"names 2 classes, and .* has 3 .*ant, bee, cat")],
)
def test_a_metadata_file_of_another_length_is_refused(root: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageFolder.open(root, classes_file(root, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has none"),
        ("folder,name\nant,ant\n", "it has folder, name"),
        ("folder,class\nant,a\nbee,b\n", "without a name: cat; not in .*: none"),
        ("folder,class\nant,a\nbee,b\ncat,c\ndog,d\n", "without a name: none; not in .*: dog"),
        ("folder,class\nant,a\nant,b\n", "csv:3: folder 'ant' comes twice"),
        ("folder,class\nant,\n", "csv:2: folder 'ant' or its class is empty"),
        ("folder,class\nant\n", "csv:2: folder 'ant' or its class is empty"),
    ],
)
def test_a_csv_that_does_not_match_the_folders_is_refused(
    root: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageFolder.open(root, classes_file(root, text, "classes.csv"))
