"""Whether an image's file is there, and hints at what is there instead."""

import zipfile

import pytest

from cit_curate.images.presence import hint_for, is_there, shown_file


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "top" / "set"
    (folder / "pictures" / "deep").mkdir(parents=True)
    for name in ("pictures/a.jpg", "pictures/deep/b.PNG", "c d.jpg", "pictures/a.txt"):
        (folder / name).write_bytes(b"")
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("x.jpg", b"")
    return folder


def test_the_file_of_an_image_is_what_counts(root):
    assert is_there(root, "pictures/a.jpg")
    assert is_there(root, "zip://z.zip#x.jpg")
    assert is_there(root, "tar://z.zip?offset=512&size=1")
    for uri in (
        "pictures",
        "pictures/none.jpg",
        "zip://none.zip#x.jpg",
        "zip://z.zip",
        "../set",
        "",
    ):
        assert not is_there(root, uri), uri


def test_what_is_shown_is_the_whole_path(root):
    assert shown_file(root, "zip://y/z.zip#x.jpg") == f"{root}/y/z.zip#x.jpg"
    assert shown_file(root, "pictures/none.jpg") == str(root / "pictures" / "none.jpg")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("pictures%2Fa.jpg", "the path is percent-encoded: pictures/a.jpg is there"),
        ("c%20d.jpg", "the path is percent-encoded: c d.jpg is there"),
        ("none%20there.jpg", "the path is percent-encoded"),
        ("pictures/a", "pictures/a.jpg is there"),
        ("pictures/A.jpg", "pictures/a.jpg is there"),
        ("pictures/a.jpeg", "pictures/a.jpg is there"),
        ("pictures/deep/b.png", "pictures/deep/b.PNG is there"),
        ("data/pictures/a.jpg", "pictures/a.jpg is there, without data before it"),
        ("deep/b.PNG", "it is there with --image-root {root}/pictures"),
        ("top/set/pictures/a.jpg", "pictures/a.jpg is there, without top/set before it"),
        ("photos/a.jpg", "a file of that name is pictures/a.jpg"),
        ("../../elsewhere.jpg", "it leads outside of {root}; --image-root names a folder"),
        ("zip://z.zip#y.jpg", "the file is there, but not this image in it"),
        ("zip://pictures/z.zip#x.jpg", "z.zip is there, without pictures before it"),
        ("nothing/like/it.jpg", ""),
    ],
)
def test_hints(root, path, hint):
    found = hint_for(root, path)
    assert found.startswith(hint.format(root=root))
    assert bool(found) == bool(hint)


def test_a_path_that_starts_above_the_root_is_found_from_there(root):
    (root.parent / "beside.jpg").write_bytes(b"")
    assert hint_for(root, "beside.jpg") == f"it is there with --image-root {root.parent}"
