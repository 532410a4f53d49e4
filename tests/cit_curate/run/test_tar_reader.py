"""The files of a tar are found where `tarfile` finds them."""

import io
import mmap
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cit_curate.run.tar_reader import _usual_members, tar_members

NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)


def tar_of(path: Path, files: list[tuple[str, bytes]], *, kind: int, mtime: float = 0.0) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))


def members_of(path: Path) -> list[tuple[str, bytes]]:
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return [(each.name, content[each.start : each.end]) for each in tar_members(content)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), min_size=1, max_size=4),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.sampled_from([0.0, 0.5, 7]),
)
@example([("\x80/", b"")], tarfile.PAX_FORMAT, 0.0)
def test_members_are_those_of_tarfile(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[str, bytes]],
    kind: int,
    mtime: float,
) -> None:
    path = tmp_path_factory.mktemp("tar") / "some.tar"
    tar_of(path, files, kind=kind, mtime=mtime)
    with tarfile.open(path) as tar:
        expected = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    assert members_of(path) == expected


def test_our_own_headers_take_the_short_way(tmp_path: Path) -> None:
    path = tmp_path / "some.tar"
    tar_of(path, [("1_title.txt", b"a"), ("n" * 200 + ".txt", b"b")], kind=tarfile.PAX_FORMAT)
    found = _usual_members(path.read_bytes())
    assert found is not None
    assert [each.name for each in found] == ["1_title.txt", "n" * 200 + ".txt"]


def test_folders_links_and_cut_tars_are_left_to_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "some.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("inner")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("inner/1.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ab"))
    assert _usual_members(path.read_bytes()) is None
    assert members_of(path) == [("inner/1.txt", b"ab")]
    assert _usual_members(path.read_bytes()[:1500]) is None


def test_a_part_of_a_tar_needs_no_end(tmp_path: Path) -> None:
    path = tmp_path / "some.tar"
    tar_of(path, [("1.txt", b"a"), ("2.txt", b"bc")], kind=tarfile.PAX_FORMAT, mtime=7)
    content = path.read_bytes()
    # Each file has a header and a block.
    second = content[1024:2048]
    assert [each.name for each in tar_members(second, is_part=True)] == ["2.txt"]
    for part in (second[:-1], second[:700], content[512:2048]):
        with pytest.raises(tarfile.ReadError):
            tar_members(part, is_part=True)
    with pytest.raises(tarfile.ReadError):
        tar_members(second)
