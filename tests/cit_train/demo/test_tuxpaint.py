from pathlib import Path

import pytest

from cit_curate.errors import ConfigError
from cit_train.demo.tuxpaint import CLASSES, evaluation_pictures, link_evaluation_pictures


def stamp(root: Path, name: str, content: bytes | None = None) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode() if content is None else content)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """One picture in every folder of every class."""
    root = tmp_path / "stamps"
    for places in CLASSES.values():
        for place in places:
            stamp(root, place if place.endswith(".png") else f"{place}/deep/one.png")
    return root


def names(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))


def test_there_are_22_classes_and_no_place_serves_two() -> None:
    places = [place for class_places in CLASSES.values() for place in class_places]
    assert len(CLASSES) == 22
    assert len(set(places)) == len(places)


def test_every_class_gets_its_pictures_under_flat_names(stamps: Path, tmp_path: Path) -> None:
    stamp(stamps, "animals/fish/one.png")
    out = tmp_path / "new" / "pictures"
    number = link_evaluation_pictures(stamps, out)
    assert number == len(names(out)) == sum(map(len, CLASSES.values())) + 1
    assert {path.name for path in out.iterdir()} == set(CLASSES)
    assert sorted(path.name for path in (out / "fish").iterdir()) == [
        "animals__fish__deep__one.png",
        "animals__fish__one.png",
    ]
    assert (out / "fish" / "animals__fish__one.png").read_bytes() == b"animals/fish/one.png"


def test_mirrored_misfiled_linked_and_vector_stamps_are_left_out(stamps: Path) -> None:
    before = set(evaluation_pictures(stamps))
    stamp(stamps, "household/tools/saw_mirror.png")
    stamp(stamps, "animals/fish/lobster.png")
    stamp(stamps, "household/tools/saw.svg")
    (stamps / "household/tools/link.png").symlink_to("deep/one.png")
    assert set(evaluation_pictures(stamps)) == before
    stamp(stamps, "household/tools/saw.png")
    assert set(evaluation_pictures(stamps)) - before == {"tool/household__tools__saw.png"}


def test_a_second_run_changes_nothing(stamps: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    number = link_evaluation_pictures(stamps, out)
    inode = out.stat().st_ino
    assert link_evaluation_pictures(stamps, out) == number
    assert out.stat().st_ino == inode


def test_an_incomplete_folder_is_replaced_as_a_whole(stamps: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    number = link_evaluation_pictures(stamps, out)
    expected = names(out)
    (out / "fish" / "animals__fish__deep__one.png").unlink()
    stamp(out, "bird/older.png")
    assert link_evaluation_pictures(stamps, out) == number
    assert names(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "stamps"]


def test_a_folder_of_something_else_is_never_replaced(stamps: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    stamp(out, "thesis.txt")
    with pytest.raises(ConfigError, match=r"holds 'thesis\.txt'"):
        link_evaluation_pictures(stamps, out)
    assert names(out) == ["thesis.txt"]


def test_pictures_are_copied_where_links_are_refused(
    stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    link_evaluation_pictures(stamps, tmp_path / "pictures")
    copied = tmp_path / "pictures" / "fish" / "animals__fish__deep__one.png"
    assert copied.read_bytes() == b"animals/fish/deep/one.png"
    assert copied.stat().st_nlink == 1


def test_a_missing_folder_is_named_with_the_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"animals/mammals is missing.*tuxpaint-stamps-default"):
        link_evaluation_pictures(tmp_path, tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()
