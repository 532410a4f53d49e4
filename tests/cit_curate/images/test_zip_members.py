"""Images inside zips: the exact member, whole and unchanged, or a reason."""

import io
import os
import stat
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cit_curate.images import zip_members
from cit_curate.images.read import ImageRejected, read_image_bytes

CONTENT = {"001.jpg": b"first" * 50, "sub/002.jpg": b"second" * 700, "003.jpg": b""}


def write_zip(path, content=CONTENT, *, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def read(root, member, name="a.zip", **options):
    return read_image_bytes(root, f"zip://{name}#{member}", **options)


def reason_of(root, member, name="a.zip", **options):
    with pytest.raises(ImageRejected) as rejected:
        read(root, member, name, **options)
    return rejected.value.reason


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
def test_members_are_read_as_zipfile_reads_them(tmp_path, compression):
    write_zip(tmp_path / "a.zip", compression=compression)
    for member, data in CONTENT.items():
        assert read(tmp_path, member) == data


def test_only_the_exact_name_is_found(tmp_path):
    write_zip(tmp_path / "a.zip")
    for member in ("01.jpg", "002.jpg", "SUB/002.jpg", "/001.jpg", "./001.jpg", "sub/../001.jpg"):
        with pytest.raises(
            ImageRejected, match=r"a\.zip, member .* has no such member"
        ) as rejected:
            read(tmp_path, member)
        assert rejected.value.reason == "missing_image"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.dictionaries(
        st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=12).filter(
            lambda name: "/" not in name and "\\" not in name
        ),
        st.binary(max_size=40),
        min_size=1,
        max_size=8,
    ),
    searched=st.booleans(),
    comment=st.binary(max_size=17),
)
def test_every_member_of_any_zip_reads_back(tmp_path, content, searched, comment):
    path = write_zip(tmp_path / "a.zip", content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    limit = zip_members._SEARCHED_BYTES
    zip_members._SEARCHED_BYTES = limit if searched else 0
    zip_members._directories._start()
    try:
        assert {name: read(tmp_path, name) for name in content} == content
    finally:
        zip_members._SEARCHED_BYTES = limit


def test_the_last_of_two_members_of_a_name_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"old")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"new")
    assert read(tmp_path, "a") == b"new"


def test_names_without_the_utf8_flag_are_cp437(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"cafX.jpg": b"1"})
    path.write_bytes(path.read_bytes().replace(b"cafX", b"caf\x82"))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["café.jpg"]
    assert read(tmp_path, "café.jpg") == b"1"


def test_a_zip_behind_other_bytes_is_read(tmp_path):
    path = write_zip(tmp_path / "a.zip")
    path.write_bytes(b"#!/bin/sh\n" * 9 + path.read_bytes())
    assert read(tmp_path, "001.jpg") == CONTENT["001.jpg"]


def test_zip64_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 8)
    path = write_zip(tmp_path / "a.zip")
    monkeypatch.undo()
    assert b"PK\6\6" in path.read_bytes()
    for member, data in CONTENT.items():
        assert read(tmp_path, member) == data
    path.write_bytes(b"in front" + path.read_bytes())
    assert read(tmp_path, "sub/002.jpg") == CONTENT["sub/002.jpg"]


def test_a_large_table_of_contents_is_indexed(tmp_path):
    content = {f"{'folder/' * 8}{number:06d}.jpg": b"%d" % number for number in range(4_000)}
    write_zip(tmp_path / "a.zip", content)
    zip_members._directories._start()
    for member in list(content)[::371]:
        assert read(tmp_path, member) == content[member]
    ((directory, _),) = zip_members._directories._values.values()
    assert len(directory.starts) == 4_000


@pytest.mark.faults("I5")
def test_a_zip_cut_anywhere_gives_the_bytes_or_a_reason(tmp_path):
    content = write_zip(tmp_path / "whole.zip").read_bytes()
    for size in range(0, len(content), 29):
        (tmp_path / "a.zip").write_bytes(content[:size])
        assert reason_of(tmp_path, "sub/002.jpg") == "unreadable_archive"


@pytest.mark.faults("I5")
def test_flipped_bytes_give_the_bytes_or_a_reason(tmp_path):
    content = write_zip(tmp_path / "whole.zip", compression=zipfile.ZIP_DEFLATED).read_bytes()
    rng = Random(0)
    for _ in range(300):
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 1, 3))):
            flipped[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "a.zip").write_bytes(flipped)
        try:
            assert read(tmp_path, "sub/002.jpg") == CONTENT["sub/002.jpg"]
        except ImageRejected as rejected:
            assert "a.zip" in rejected.detail  # noqa: PT017
            assert "sub/002.jpg" in rejected.detail  # noqa: PT017


@pytest.mark.faults("I5")
def test_a_wrong_checksum_is_damage(tmp_path):
    path = write_zip(tmp_path / "a.zip")
    path.write_bytes(path.read_bytes().replace(b"firstfirst", b"firsTfirst", 1))
    with pytest.raises(ImageRejected, match=r"a\.zip, member '001\.jpg': Bad CRC-32"):
        read(tmp_path, "001.jpg")


@pytest.mark.faults("I5")
def test_a_zip_that_is_missing_or_no_zip_is_named(tmp_path):
    (tmp_path / "text.zip").write_text("nothing")
    (tmp_path / "empty.zip").write_bytes(b"")
    assert reason_of(tmp_path, "x", "gone.zip") == "unreadable_archive"
    for name in ("text.zip", "empty.zip"):
        assert reason_of(tmp_path, "x", name) == "unreadable_archive"
    zipfile.ZipFile(tmp_path / "none.zip", "w").close()
    assert reason_of(tmp_path, "x", "none.zip") == "missing_image"


@pytest.mark.faults("I6")
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    zeros = bytes(8 << 20)
    write_zip(tmp_path / "a.zip", {"bomb": zeros}, compression=zipfile.ZIP_DEFLATED)
    assert reason_of(tmp_path, "bomb") == "too_many_bytes"
    blank = bytes(500_000)
    write_zip(tmp_path / "b.zip", {"blank.bmp": blank}, compression=zipfile.ZIP_DEFLATED)
    assert read(tmp_path, "blank.bmp", "b.zip") == blank
    assert reason_of(tmp_path, "blank.bmp", "b.zip", max_bytes=499_999) == "too_many_bytes"


@pytest.mark.faults("I6")
@pytest.mark.parametrize("declared", [10, 249, 251, 60_000])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_size_that_is_not_the_members_own_is_damage(tmp_path, declared, compression):
    path = write_zip(tmp_path / "a.zip", {"m": CONTENT["001.jpg"]}, compression=compression)
    content = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<L", content, content.find(signature) + place, declared)
    path.write_bytes(content)
    assert reason_of(tmp_path, "m") == "damaged_archive"


@pytest.mark.faults("I6")
def test_members_that_overlap_give_their_own_bytes_or_a_reason(tmp_path):
    names = {"a": b"one" * 50, "b": b"two" * 50}
    content = bytearray(write_zip(tmp_path / "whole.zip", names).read_bytes())
    second = content.rfind(b"PK\1\2")
    for offset in (0, 20, 60):  # where the second member is said to start: in the first one
        struct.pack_into("<L", content, second + 42, offset)
        (tmp_path / "a.zip").write_bytes(content)
        assert reason_of(tmp_path, "b") == "damaged_archive"
        assert read(tmp_path, "a") == names["a"]


def with_record_of(inner, outer, content, *, shift=0):
    """A zip with the member `outer`, in whose content `inner` starts as the directory has it."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(outer, content)
        # It lies at the end of the content, less what comes behind it.
        place = written.tell() - len(content) + shift
        info = zipfile.ZipInfo(inner)
        info.header_offset, info.file_size = place, 5
        info.compress_size, info.CRC = 5, zlib.crc32(b"inner")
        archive.filelist.append(info)
        archive._didModify = True
    return written.getvalue()


def local_part(name, data):
    """A whole local part of a stored member: header, name, bytes."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(name, data)
    content = written.getvalue()
    return content[: content.find(b"PK\1\2")]


@pytest.mark.faults("I6")
@pytest.mark.parametrize("front", [b"", b"x" * 70, b"PK\3\4"])
@pytest.mark.parametrize("num_others", [0, 4_000])
def test_a_member_with_another_one_inside_is_damage(tmp_path, front, num_others):
    content = front + local_part("b", b"inner") + b"behind"
    data = with_record_of("b", "a", content, shift=len(front))
    (tmp_path / "a.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        assert archive.read("b") == b"inner"
        for number in range(num_others):
            archive.writestr(f"{'folder/' * 8}{number:06d}.jpg", b"x")
    with pytest.raises(
        ImageRejected, match=r"a\.zip, member 'a': it overlaps the member 'b'"
    ) as rejected:
        read(tmp_path, "a")
    assert rejected.value.reason == "damaged_archive"
    assert read(tmp_path, "b") == b"inner"


@pytest.mark.faults("I6")
def test_bytes_that_look_like_the_start_of_a_member_are_a_members_own(tmp_path):
    inner = write_zip(tmp_path / "inner.zip").read_bytes()
    content = {"a": b"PK\3\4" * 9, "b.zip": inner, "c": local_part("a", b"x"), "d": b"PK\3\4"}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_zip(tmp_path / "a.zip", content, compression=compression)
        assert {name: read(tmp_path, name) for name in content} == content
        path.write_bytes(b"in front" + path.read_bytes())
        assert {name: read(tmp_path, name) for name in content} == content


@pytest.mark.faults("I7")
def test_links_folders_and_encrypted_members_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, mode in (("link", stat.S_IFLNK), ("device", stat.S_IFCHR), ("ok", stat.S_IFREG)):
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = (mode | 0o644) << 16
            archive.writestr(info, "/etc/hostname")
        archive.mkdir("folder")
    for member in ("link", "device", "folder/"):
        assert reason_of(tmp_path, member) == "missing_image"
    assert read(tmp_path, "ok") == b"/etc/hostname"
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.rfind(signature, 0, content.rfind(b"ok") + 1) + place] |= 1
    (tmp_path / "b.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        encrypted = [info.filename for info in archive.infolist() if info.flag_bits & 1]
    assert len(encrypted) == 1
    assert reason_of(tmp_path, encrypted[0], "b.zip") == "encrypted_image"


@pytest.mark.faults("I7")
def test_names_that_lead_outside_are_only_names(tmp_path):
    root = tmp_path / "x" / "y"
    root.mkdir(parents=True)
    absolute = (str(tmp_path / "absolute" / "evil.jpg"), "/etc/evil.jpg")
    names = ("../../evil.jpg", "../evil.jpg", "..\\evil.jpg", *absolute)
    write_zip(root / "a.zip", dict.fromkeys(names, b"inert"))
    assert {read(root, name) for name in names} == {b"inert"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "x", "y"]
    assert not [name for name in absolute if Path(name).exists()]


def test_a_zip_outside_the_image_root_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_zip(tmp_path / "a.zip")
    (root / "link.zip").symlink_to(tmp_path / "a.zip")
    for name in ("../a.zip", "link.zip", str(tmp_path / "a.zip")):
        assert reason_of(root, "001.jpg", name) == "path_escapes"
    os.mkfifo(root / "pipe.zip")
    assert reason_of(root, "001.jpg", "pipe.zip") == "unreadable_archive"


def test_a_zip_that_was_written_anew_is_read_anew(tmp_path):
    write_zip(tmp_path / "a.zip", {"x": b"old", "y": b"1"})
    assert read(tmp_path, "x") == b"old"
    write_zip(tmp_path / "b.zip", {"y": b"2", "x": b"newer"})
    (tmp_path / "b.zip").rename(tmp_path / "a.zip")
    assert [read(tmp_path, "x"), read(tmp_path, "y")] == [b"newer", b"2"]


def reads(root, seed, count=1_000):
    rng = Random(seed)
    for _ in range(count):
        zip_number, member = rng.randrange(4), rng.randrange(50)
        data = read(root, f"{member:03d}.jpg", f"{zip_number}.zip")
        assert data == b"%d %d" % (zip_number, member) * 200


@pytest.mark.faults("I8")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_forked_workers_and_threads_read_the_same_zips(tmp_path, num_workers):
    for number in range(4):
        content = {f"{member:03d}.jpg": b"%d %d" % (number, member) * 200 for member in range(50)}
        write_zip(tmp_path / f"{number}.zip", content, compression=zipfile.ZIP_DEFLATED)
    reads(tmp_path, 0, 100)
    children = []
    for seed in range(num_workers):
        child = os.fork()
        if not child:
            try:
                reads(tmp_path, seed)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    with ThreadPoolExecutor(num_workers) as pool:
        list(pool.map(lambda seed: reads(tmp_path, seed, 500), range(num_workers)))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * num_workers
