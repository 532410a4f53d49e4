"""WebDataset tars as a source: whole or called damaged, every sample a pair or a reject."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.read import read_image_bytes
from cit_curate.sources.columns import Columns
from cit_curate.sources.pairs import pairs_of
from cit_curate.sources.rows import ROW
from cit_curate.sources.source import find_sources
from cit_curate.sources.webdataset import open_webdataset

DEFAULT = Columns()


def write_tar(path, members, *, form=tarfile.PAX_FORMAT):
    """Members are (name, bytes) or a TarInfo without data."""
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def read(path, columns=DEFAULT):
    reader = open_webdataset(path, columns)
    pairs, rejects, records = [], [], 0
    for rows in reader.read():
        raw = pairs_of(rows, reader.columns, image_root=path.parent)
        pairs += raw.pairs.to_pylist()
        rejects += raw.rejects
        records += raw.num_records
    assert records == len({r.row for r in rejects} | {p[ROW] for p in pairs})
    return pairs, rejects


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_sample_is_an_image_with_its_text(tmp_path, form):
    long = "deep/" * 30 + "x"
    members = [
        ("./a/1.jpg", b"first"),
        ("./a/1.txt", b"\xef\xbb\xbfa blue\nbird\r\n"),
        ("2.TXT", b"caf\xe9"),
        ("2.PNG", b"second"),
        (f"{long}.webp", b"third"),
        (f"{long}.txt", b"deep"),
    ]
    path = write_tar(tmp_path / "a.tar", members, form=form)
    pairs, rejects = read(path)
    assert [(p["image_id"], p["text_key"], p["caption"]) for p in pairs] == [
        ("a/1", "caption", "a blue\nbird"),
        ("2", "caption", "caf\ufffd"),
        (long, "caption", "deep"),
    ]
    images = [read_image_bytes(tmp_path, p["image_uri"]) for p in pairs]
    assert images == [b"first", b"second", b"third"]
    assert rejects == []


def test_samples_are_those_that_webdataset_sees(tmp_path):
    names = ["a.jpg", "a.seg.png", "a.txt", "b/c.d/e.x.jpg", "b/c.d/e.txt", "b/c.d/e.png", "f.txt"]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    pairs, rejects = read(path)
    with path.open("rb") as stream:
        files = wds.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        seen = [
            (sample["__key__"], sample.get("jpg", sample.get("png")))
            for sample in wds.tariterators.group_by_keys(files)
            if {"jpg", "png"} & sample.keys()
        ]
    assert [(p["image_id"], read_image_bytes(tmp_path, p["image_uri"])) for p in pairs] == seen
    assert [(r.row, r.reason) for r in rejects] == [(3, "text_without_image")]


def test_the_json_gives_further_texts_ids_and_columns(tmp_path):
    def member(name, **fields):
        return f"{name}.json", json.dumps(fields).encode()

    path = write_tar(
        tmp_path / "a.tar",
        [
            *(("1.jpg", b"x"), ("1.txt", b"from txt")),
            member("1", caption="from json", title="T", id=11, clip=0.25),
            *(("2.jpg", b"y"), member("2", caption="only json", id="22")),
        ],
    )
    columns = Columns(image_id="id", text=("caption", "title"), extra=("clip",))
    pairs, _ = read(path, columns)
    assert [(p["image_id"], p["text_key"], p["caption"], p["clip"]) for p in pairs] == [
        ("11", "caption", "from txt", "0.25"),
        ("11", "title", "T", "0.25"),
        ("22", "caption", "only json", None),
    ]
    by_key, _ = read(path, Columns(image_id="__key__", text=("title",)))
    assert [(p["image_id"], p["caption"]) for p in by_key] == [("1", "T")]


def test_a_json_with_image_id_and_text_key_gives_the_pair_key(tmp_path):
    fields = json.dumps({"image_id": "im/age.1", "text_key": "tag"}).encode()
    members = [("im_tag.png", b"x"), ("im_tag.txt", b"cat, dog"), ("im_tag.json", fields)]
    ((pair,), _) = read(write_tar(tmp_path / "a.tar", members))
    assert (pair["image_id"], pair["text_key"], pair["caption"]) == ("im/age.1", "tag", "cat, dog")


@pytest.mark.faults("S2")
def test_samples_that_lack_a_part_are_rejected(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [("a.jpg", b""), ("b.txt", b"text"), ("c.cls", b"3"), ("d.jpg", b""), ("d.txt", b" ")],
    )
    pairs, rejects = read(path)
    assert pairs == []
    assert [(r.row, r.reason) for r in rejects] == [
        (1, "empty_text"),
        (2, "text_without_image"),
        (3, "text_without_image"),
        (4, "empty_text"),
    ]
    assert "has only 'cls'" in rejects[2].detail


@pytest.mark.faults("S2")
@pytest.mark.parametrize(
    ("names", "bad"),
    [
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], [3, 4]),
        (["a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt"], [3]),
        (["a.jpg", "a.jpg", "a.txt"], [1]),
        (["a.jpg", "a.txt", "a.txt"], [1]),
        (["a.jpg", "a.png", "a.txt"], [1]),
    ],
)
def test_interleaved_and_repeated_members_are_malformed(tmp_path, names, bad):
    path = write_tar(tmp_path / "a.tar", [(name, b"text") for name in names])
    _, rejects = read(path)
    found = [r for r in rejects if r.reason == "bad_row"]
    assert [r.row for r in found] == bad
    assert all("sample 'a'" in r.detail or "sample 'b'" in r.detail for r in found)


@pytest.mark.faults("S2")
def test_links_devices_and_bad_json_are_malformed(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            *(special("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("a.txt", b"x")),
            *(special("b.jpg", tarfile.LNKTYPE, "a.txt"), ("b.txt", b"x")),
            *(special("c.jpg", tarfile.CHRTYPE), ("c.txt", b"x")),
            *(("d.jpg", b""), ("d.txt", b"x"), ("d.json", b"{cut")),
            *(("e.jpg", b""), ("e.txt", b"x"), ("e.json", b" " * (1 << 20) + b"{}")),
            special("f.jpg", tarfile.DIRTYPE),
            *(("g.jpg", b"!"), ("g.txt", b"good")),
        ],
    )
    pairs, rejects = read(path)
    assert [p["caption"] for p in pairs] == ["good"]
    assert [(r.row, r.reason) for r in rejects] == [(n, "bad_row") for n in range(1, 6)]


def test_names_that_are_not_utf8_are_rejected(tmp_path):
    members = [("caf\udce9.jpg", b"x"), ("caf\udce9.txt", b"y"), ("ü.jpg", b"x"), ("ü.txt", b"z")]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        pairs, rejects = read(write_tar(tmp_path / "a.tar", members, form=form))
        assert [(p["image_id"], p["caption"]) for p in pairs] == [("ü", "z")]
        assert read_image_bytes(tmp_path, pairs[0]["image_uri"]) == b"x"
        assert [r.reason for r in rejects] == ["bad_image_id"]


def small_tar(path, count=6):
    with wds.TarWriter(str(path)) as tar:
        for number in range(count):
            tar.write(
                {"__key__": f"{number:04d}", "jpg": b"%d" % number * 300, "txt": f"text {number}"}
            )
    return path


@pytest.mark.faults("S1")
def test_a_tar_cut_anywhere_is_called_damaged(tmp_path):
    content = small_tar(tmp_path / "whole.tar").read_bytes()
    end = len(content.rstrip(b"\0"))
    end += -end % 512
    path = tmp_path / "cut.tar"
    for size in (*range(0, end + 512, 97), *range(0, end + 1, 512)):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"cut\.tar.*(cut|damaged)"):
            read(path)
    path.write_bytes(content[: end + 512])
    assert len(read(path)[0]) == 6


def test_damage_is_never_a_shorter_tar(tmp_path):
    content = small_tar(tmp_path / "whole.tar").read_bytes()
    path = tmp_path / "damaged.tar"
    for place in range(0, len(content.rstrip(b"\0")), 131):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            pairs, rejects = read(path)
        except DamagedError:
            continue
        assert len(pairs) + len(rejects) == 6


def test_tars_joined_with_cat_are_not_cut_short(tmp_path):
    content = small_tar(tmp_path / "one.tar").read_bytes()
    (tmp_path / "two.tar").write_bytes(content + content)
    with pytest.raises(DamagedError, match=r"has data after its end.*--concatenate"):
        read(tmp_path / "two.tar")


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 5 << 30
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 6 << 30)
    with pytest.raises(DamagedError, match="a header claims"):
        read(path)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_a_compressed_tar_is_refused_with_a_hint(tmp_path, name):
    content = small_tar(tmp_path / "whole").read_bytes()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_bytes(gzip.compress(content))
    for path in (tmp_path / "shards", tmp_path / "shards" / name):
        (source,) = find_sources([path])
        with pytest.raises(ConfigError, match=r"is compressed.*unpack it"):
            open_webdataset(source.path, DEFAULT)


@pytest.mark.faults("X3")
def test_pipes_and_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        find_sources([Path("pipe:touch ran")], format="webdataset")
    with pytest.raises(ConfigError, match="does not exist"):
        find_sources([Path("pipe:touch {ran,run}")])
    # Unpickling it would make the folder `ran`.
    pickled = b"cos\nmkdir\n(Vran\ntR."
    members = [("a.jpg", b"x"), ("a.pyd", pickled), ("a.pickle", pickled), ("a.txt", b"text")]
    ((pair,), _) = read(write_tar(tmp_path / "a.tar", members))
    assert pair["caption"] == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_a_folder_and_a_pattern_stand_for_their_tars(tmp_path):
    for number in range(3):
        small_tar(tmp_path / f"{number:03d}.tar", 1)
    (tmp_path / "rejects.parquet").write_bytes(b"")
    names = [f"{tmp_path.name}/{number:03d}.tar" for number in range(3)]
    assert [source.name for source in find_sources([tmp_path])] == names
    found = find_sources([tmp_path / "{000..002}.tar"], image_root=tmp_path.parent)
    assert [(s.name, s.format, s.image_root) for s in found] == [
        (f"{number:03d}.tar", "webdataset", tmp_path.resolve()) for number in range(3)
    ]
    with pytest.raises(ConfigError, match=r"003\.tar does not exist; did you mean .*00\d\.tar\?"):
        find_sources([tmp_path / "{002..003}.tar"])
    with pytest.raises(ConfigError, match="leave out --image"):
        open_webdataset(tmp_path / "000.tar", Columns(image="jpg"))


def test_the_images_of_a_linked_tar_are_found(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    tar = write_tar(tmp_path / "blobs" / "0123", [("a.jpg", b"image"), ("a.txt", b"text")])
    (tmp_path / "snapshot" / "000.tar").symlink_to(tar)
    (source,) = find_sources([tmp_path / "snapshot"])
    ((pair,), _) = read(source.path)
    assert read_image_bytes(source.image_root, pair["image_uri"]) == b"image"


def test_suffixes_of_jpeg_make_pairs_and_other_formats_are_named(tmp_path):
    members = [
        member
        for number, suffix in enumerate(("jpg", "jfif", "JPE", "tiff", "avif", "heic"))
        for member in ((f"{number}.{suffix}", b"x"), (f"{number}.txt", b"a hut"))
    ]
    pairs, rejects = read(write_tar(tmp_path / "a.tar", members))
    assert len(pairs) == 3
    assert [reject.reason for reject in rejects] == ["format_not_allowed"] * 3
    assert "'3.tiff'" in rejects[0].detail
    assert "JPEG, PNG" in rejects[0].detail


def test_an_allowed_image_goes_before_another_of_its_sample(tmp_path):
    members = [("0.tiff", b"x"), ("0.jpg", b"x"), ("0.txt", b"a hut")]
    pairs, rejects = read(write_tar(tmp_path / "a.tar", members))
    assert len(pairs) == 1
    assert rejects == []


def test_texts_are_utf16_by_their_mark_or_in_the_given_encoding(tmp_path):
    text = "ein Häuschen"
    members = [
        *(("0.jpg", b"x"), ("0.txt", b"\xff\xfe" + text.encode("utf-16-le"))),
        *(
            ("1.jpg", b"x"),
            ("1.json", b"\xfe\xff" + f'{{"caption": "{text}"}}'.encode("utf-16-be")),
        ),
        *(("2.jpg", b"x"), ("2.txt", text.encode())),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    assert [pair["caption"] for pair in read(path)[0]] == [text] * 3
    members = [("0.jpg", b"x"), ("0.txt", text.encode("cp1252"))]
    path = write_tar(tmp_path / "b.tar", members)
    reader = open_webdataset(path, DEFAULT, "cp1252")
    (rows,) = reader.read()
    pairs = pairs_of(rows, reader.columns, image_root=tmp_path).pairs.to_pylist()
    assert [(pair["caption"], pair["text_fixed"]) for pair in pairs] == [(text, False)]
    with pytest.raises(ConfigError, match="utf-99"):
        open_webdataset(path, DEFAULT, "utf-99")
    unmarked = [("0.jpg", b"x"), ("0.txt", text.encode("utf-16-le"))]
    with pytest.raises(ConfigError, match=r"0\.txt.*looks like UTF-16.*--encoding utf-16-le"):
        read(write_tar(tmp_path / "c.tar", unmarked))
