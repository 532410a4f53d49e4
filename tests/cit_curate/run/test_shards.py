"""Shards: any key comes back, a webdataset pipeline reads them, a cut one is never read short."""

import io
import os
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.errors import DamagedError
from cit_curate.run.shard_manifest import read_shard_manifest
from cit_curate.run.shards import (
    MAX_NAME_BYTES,
    Sample,
    ShardWriter,
    member_name,
    open_shard,
    read_shard,
    shard_entry,
)
from cit_curate.run.tar_writer import end_of_tar, member
from cit_curate.storage.durable import FileEntry, describe_file, write_json


def sample(key: str, caption: str = "a cat") -> Sample:
    return Sample(b"\x89PNG...", "png", caption, {"pair_key": key, "similarity": 0.5})


def write(folder: Path, samples: list[Sample], pairs_per_shard: int = 100) -> list[Path]:
    writer = ShardWriter(folder, "lane00000", pairs_per_shard=pairs_per_shard)
    for each in samples:
        writer.add(each)
    return [folder / entry.path for entry in writer.close()]


@pytest.mark.faults("P5")
@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=6))
def test_any_keys_and_captions_come_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str]
) -> None:
    keys = [key.encode("utf-8", "replace").decode() for key in keys]
    folder = tmp_path_factory.mktemp("shards")
    paths = write(folder, [sample(key, key) for key in keys], pairs_per_shard=4)
    back = [each for path in paths for each in read_shard(folder, shard_entry(path))]
    assert [each.pair_key for each in back] == keys
    assert [each.caption for each in back] == keys


@pytest.mark.faults("P5")
@given(st.text(max_size=300))
def test_a_member_name_is_one_safe_path_component(key: str) -> None:
    name = member_name(key.encode("utf-8", "replace").decode())
    assert name.isascii()
    assert not set(name) & set("./\\+~")
    assert not name.startswith("__")
    assert len(name) <= MAX_NAME_BYTES


@pytest.mark.faults("P5")
@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("1_title", "1_title"),
        ("a.b/c d_tag", "a%2Eb%2Fc%20d_tag"),
        ("__x", "%5F_x"),
        ("é" * 33 + "_t", "%C3%A9" * 33 + "_t"),
        ("x" * 200, "x" * 200),
        ("_" + "x" * 197, "%5F" + "x" * 197),
        ("x" * 201, "x" * 183 + "=84a0678c90937f5d"),
        ("_" + "x" * 198, "%5F" + "x" * 180 + "=258c7601ffd43a22"),
        ("é" * 127, ("%C3%A9" * 31)[:183] + "=2e3eba0a19e6164b"),
    ],
)
def test_a_name_of_up_to_200_bytes_is_the_escaped_key_and_a_longer_one_ends_in_a_hash(
    key: str, name: str
) -> None:
    assert member_name(key) == name


long_keys = st.text(st.sampled_from("é中👩x_./%="), min_size=60, max_size=255)


@pytest.mark.faults("P5")
@settings(max_examples=60, deadline=None)
@given(fronts=st.lists(long_keys, min_size=1, max_size=4), times=st.integers(1, 3))
def test_long_keys_come_back_from_names_that_a_file_system_takes(
    tmp_path_factory: pytest.TempPathFactory, fronts: list[str], times: int
) -> None:
    # Keys that differ at their ends alone, and what names of keys are as keys of their own.
    keys = [f"{front}{end}" for front in fronts for end in ("", "1", "2")]
    keys += [member_name(key) for key in keys]
    assert len({member_name(key) for key in keys}) == len(set(keys))
    folder = tmp_path_factory.mktemp("shards")
    paths = write(folder, [sample(key) for key in keys] * times)
    back = [each for path in paths for each in read_shard(folder, shard_entry(path))]
    assert [each.pair_key for each in back] == keys * times
    for path in paths:
        with tarfile.open(path) as tar:
            members = tar.getnames()
        assert len(set(members)) == len(members)
        assert max(len(name.encode()) for name in members) <= 255
        (folder / max(members, key=len)).touch()


def test_the_same_pair_twice_in_one_shard_stays_two_samples(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [sample("1_title"), sample("1_title"), sample("1_title")])
    assert len(list(read_shard(tmp_path, shard_entry(path)))) == 3


def test_a_plain_webdataset_pipeline_reads_a_shard(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [sample("1_title", "one"), sample("2.5/x_tag", "two")])
    with path.open("rb") as stream:
        files = wds.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        back = list(wds.decode()(wds.tariterators.group_by_keys(files)))
    assert [each["txt"] for each in back] == ["one", "two"]
    assert [each["json"]["pair_key"] for each in back] == ["1_title", "2.5/x_tag"]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    samples = [sample(f"{number}_title") for number in range(5)]
    (one,) = write(tmp_path / "a", samples)
    (other,) = write(tmp_path / "b", samples)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.faults("S1")
def test_a_shard_cut_or_changed_at_any_byte_is_refused(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [sample(f"{number}_title") for number in range(3)])
    entry, whole = shard_entry(path), path.read_bytes()
    for offset in range(0, len(whole), max(len(whole) // 300, 1)):
        for damaged in (
            whole[:offset],
            whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :],
        ):
            path.write_bytes(damaged)
            with pytest.raises(DamagedError):
                list(read_shard(tmp_path, entry))


def without_marks(tar: Path) -> None:
    """Turn the manifest of a shard into one from before samples were marked."""
    write_json(tar.with_suffix(".json"), asdict(shard_entry(tar)))


def is_refused(tar: Path, samples: list[Sample], rows: Sequence[int]) -> bool:
    """Whether these samples cannot be read; what can be read is what was written."""
    try:
        shard = open_shard(tar)
        found = [shard[row] for row in rows]
    except DamagedError:
        return True
    assert found == [samples[row] for row in rows]
    return False


@pytest.mark.faults("S1")
@pytest.mark.parametrize("is_marked", [True, False])
def test_no_reader_of_some_samples_gets_one_that_is_cut_or_changed(
    tmp_path: Path, is_marked: bool
) -> None:
    samples = [sample(f"{number}_title", "a cat" * number) for number in range(4)]
    (path,) = write(tmp_path, samples)
    if not is_marked:
        without_marks(path)
    whole = path.read_bytes()
    assert list(open_shard(path)) == samples
    for offset in range(0, len(whole), max(len(whole) // 300, 1)):
        changed = whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :]
        for damaged in (whole[:offset], changed):
            path.write_bytes(damaged)
            refused = [is_refused(path, samples, rows) for rows in ((0, 2), (1, 3))]
            assert sum(refused) == (1 if is_marked and damaged is changed else 2)


@pytest.mark.faults("S1")
def test_a_manifest_that_is_cut_or_changed_at_any_byte_is_refused(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [sample("1_title"), sample("2_title")])
    manifest = path.with_suffix(".json")
    whole = manifest.read_bytes()
    for offset in range(len(whole)):
        changed = whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :]
        for damaged in (whole[:offset], changed):
            manifest.write_bytes(damaged)
            with pytest.raises(DamagedError):
                open_shard(path)


def test_the_marks_of_samples_cover_the_whole_tar(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [sample("1_title"), sample("2_title"), sample("2_title")])
    manifest = read_shard_manifest(path)
    assert manifest.samples is not None
    ends = [0, *(mark.end for mark in manifest.samples)]
    assert ends[-1] == manifest.entry.bytes == path.stat().st_size
    content = path.read_bytes()
    parts = [content[start:end] for start, end in pairwise(ends)]
    assert [zlib.crc32(part) for part in parts] == [mark.crc32 for mark in manifest.samples]


@pytest.mark.faults("S3")
def test_a_deleted_shard_is_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [sample("1_title")])
    entry = shard_entry(path)
    path.unlink()
    with pytest.raises(DamagedError, match=r"lane00000-000000\.tar is missing"):
        list(read_shard(tmp_path, entry))


def two_samples(folder: Path) -> tuple[Path, list[str]]:
    """A shard of the samples 6_title and 7_title, and the names of its members."""
    (path,) = write(folder, [sample("6_title"), sample("7_title")])
    with tarfile.open(path) as tar:
        return path, tar.getnames()


def overwrite(path: Path, names: Sequence[str]) -> FileEntry:
    """Put other members in the place of a shard's; the entry fits them, as if 2 samples."""
    contents = {".png": b"x", ".txt": b"a cat", ".json": b'{"pair_key": "7_title"}'}
    tar = b"".join(member(name, contents[Path(name).suffix]) for name in names)
    path.write_bytes(tar + end_of_tar(len(tar)))
    return describe_file(path, path.parent, rows=2)


@pytest.mark.faults("S2")
@pytest.mark.parametrize(("suffix", "lost"), [("png", "image"), ("txt", "txt"), ("json", "json")])
def test_a_sample_that_lacks_a_member_names_shard_and_key(
    tmp_path: Path, suffix: str, lost: str
) -> None:
    path, names = two_samples(tmp_path)
    names.remove(f"7_title.{suffix}")
    entry = overwrite(path, names)
    told = rf"'7_title' of .*lane00000-000000\.tar has no {lost} member"
    with pytest.raises(DamagedError, match=told):
        list(read_shard(tmp_path, entry))


@pytest.mark.faults("S2")
@pytest.mark.parametrize("rows", [2, 3, 4])
def test_a_sample_whose_members_stand_apart_names_shard_and_key(tmp_path: Path, rows: int) -> None:
    path, names = two_samples(tmp_path)
    entry = overwrite(path, names[:2] + names[3:] + names[2:3])
    with pytest.raises(DamagedError, match=r"'6_title' of .*lane00000-000000\.tar is in pieces"):
        list(read_shard(tmp_path, replace(entry, rows=rows)))


@pytest.mark.faults("S2")
@pytest.mark.parametrize("suffix", ["png", "txt", "json"])
def test_a_member_that_comes_twice_names_shard_and_key(tmp_path: Path, suffix: str) -> None:
    path, names = two_samples(tmp_path)
    entry = overwrite(path, [*names, f"7_title.{suffix}"])
    told = rf"lane00000-000000\.tar is no shard: .*7_title\.{suffix}: duplicate"
    with pytest.raises(DamagedError, match=told):
        list(read_shard(tmp_path, entry))


names = st.text("abc_/.-é%", min_size=1, max_size=6) | st.text("ab/", min_size=90, max_size=300)


@given(st.lists(st.tuples(names, st.binary(max_size=1100)), max_size=5))
def test_a_tar_has_the_bytes_that_webdataset_writes(files: list[tuple[str, bytes]]) -> None:
    expected = io.BytesIO()
    with wds.TarWriter(expected, encoder=False, mtime=0.0, format="PAX_FORMAT") as tar:
        for name, content in files:
            tar.write({"__key__": name, "txt": content})
    ours = b"".join(member(f"{name}.txt", content) for name, content in files)
    assert ours + end_of_tar(len(ours)) == expected.getvalue()


@pytest.mark.faults("X3")
@pytest.mark.slow
def test_webdataset_refuses_pipes_and_pickles_once_a_shard_was_read(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "a", pairs_per_shard=2)
    writer.add(Sample(b"\xff\xd8\xff", "jpg", "text", {"pair_key": "1_t"}))
    writer.close()
    code = (
        "import sys; from pathlib import Path\n"
        "from cit_curate.run.shards import ClosedShard, shard_entry\n"
        "folder = Path(sys.argv[1])\n"
        "ClosedShard(folder, shard_entry(folder / 'a-000000.tar'))\n"
        "import webdataset as wds\n"
        "assert wds.utils.enforce_security\n"
        "try: wds.gopen('pipe:touch ' + sys.argv[1] + '/ran').read()\n"
        "except ValueError as error: print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "WDS_SECURE"}
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout
    assert not (tmp_path / "ran").exists()
