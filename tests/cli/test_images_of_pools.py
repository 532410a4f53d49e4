"""`cit pool build` by command, where images are not what their table or folder says."""

import io
import json
from pathlib import Path

import pytest
from cli_runs import Cit
from PIL import Image

COLUMNS = ("--image-id", "id", "--image", "image", "--caption", "caption")


def put(path: Path, kind: str = "JPEG", caption: str = "") -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "olive").save(stream, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())
    if caption:
        path.with_suffix(".txt").write_text(caption)


def table(path: Path, images: list[str]) -> Path:
    rows = [f"{number},{image},an olive sheet {number}" for number, image in enumerate(images)]
    path.write_text("\n".join(["id,image,caption", *rows, ""]))
    return path


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        ("shots%2F{}.jpg", "is percent-encoded"),
        ("shots/{}", "shots/0.jpg is there"),
        ("nowhere/{}.jpg", ""),
    ],
)
def test_a_table_whose_images_are_not_there_ends_with_3_and_a_hint(
    cit: Cit, tmp_path: Path, image: str, hint: str
) -> None:
    for number in range(3):
        put(tmp_path / "shots" / f"{number}.jpg")
    source = table(tmp_path / "t.csv", [image.format(number) for number in range(3)])
    ended = cit("pool", "build", source, *COLUMNS, "--out", tmp_path / "p")
    assert ended.code == 3
    assert f"{tmp_path.resolve()}/{image.format(0)}" in ended.err
    assert hint in ended.err
    assert not (tmp_path / "p").exists()
    flags = ("--out", tmp_path / "p", "--allow-missing-images", "--json")
    ended = cit("pool", "build", source, *COLUMNS, *flags)
    assert ended.code == 0
    assert json.loads(ended.out)["num_with_image"] == 0


def test_some_missing_images_are_a_warning_and_the_summary_counts(cit: Cit, tmp_path: Path) -> None:
    put(tmp_path / "0.jpg")
    source = table(tmp_path / "t.csv", ["0.jpg", "7.jpg"])
    ended = cit("pool", "build", source, *COLUMNS, "--out", tmp_path / "p", "--json")
    assert ended.code == 0
    shown = json.loads(ended.out)
    (warning,) = shown["warnings"]
    assert f"1 of 2 images is not there; the first: {tmp_path.resolve()}/7.jpg" in warning
    assert (shown["num_pairs"], shown["num_with_image"], shown["num_images_tried"]) == (2, 1, 2)
    assert "pairs with an image file: 1" in cit("pool", "info", tmp_path / "p").out


def test_a_folder_with_links_and_other_formats_is_read_and_everything_named(
    cit: Cit, tmp_path: Path
) -> None:
    put(tmp_path / "store" / "s.jpg", caption="stored")
    put(tmp_path / "in" / "a.jfif", caption="an olive sheet")
    put(tmp_path / "in" / "b.tif", "TIFF", caption="in vain")
    (tmp_path / "in" / "link").symlink_to("../store")
    ended = cit("pool", "build", tmp_path / "in", "--out", tmp_path / "p", "--json")
    assert ended.code == 0
    shown = json.loads(ended.out)
    assert shown["rejects"] == {"format_not_allowed": 1, "path_escapes": 1}
    warnings = " ".join(shown["warnings"])
    assert "rejected as format_not_allowed" in warnings
    assert f"--image-root {tmp_path.resolve()}" in warnings
    flags = ("--out", tmp_path / "p", "--overwrite", "--json", "--image-root", tmp_path)
    ended = cit("pool", "build", tmp_path / "in", *flags)
    assert json.loads(ended.out)["num_with_image"] == 2


def test_an_imagefolder_needs_no_flag_and_a_wrong_one_lists_the_columns(
    cit: Cit, tmp_path: Path
) -> None:
    put(tmp_path / "in" / "train" / "0.jpg")
    (tmp_path / "in" / "train" / "metadata.csv").write_text("file_name,text\n0.jpg,a sheet\n")
    flags = (tmp_path / "in", "--out", tmp_path / "p")
    assert cit("pool", "build", *flags, "--text", "nowhere").code == 2
    assert "file_name, text" in cit("pool", "build", *flags, "--text", "nowhere").err
    ended = cit("pool", "build", *flags)
    assert ended.code == 0
    assert "the texts are the column 'text'" in ended.out


def test_class_folders_without_captions_end_with_3_and_what_to_do(cit: Cit, tmp_path: Path) -> None:
    for name in ("olive", "teal"):
        put(tmp_path / "in" / name / "0.jpg")
    ended = cit("pool", "build", tmp_path / "in", "--out", tmp_path / "p")
    assert ended.code == 3
    for words in ("image_without_text 2", "NAME.txt", "file_name", "cit eval"):
        assert words in ended.err
