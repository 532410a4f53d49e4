"""Folders of images with a text beside each: names, suffixes, encodings, links."""

import unicodedata

import pytest

from cit_curate.config import ReadConfig
from cit_curate.errors import ConfigError
from cit_curate.sources.columns import Columns
from cit_curate.sources.folders.folder import open_folder
from cit_curate.sources.pairs import pairs_of


def read(reader, root):
    """The pairs, the rejects as (reason, detail), and the kinds of the notes."""
    pairs, rejects, kinds = [], [], []
    for rows in reader.read():
        raw = pairs_of(rows, reader.columns, image_root=root)
        pairs += raw.pairs.to_pylist()
        rejects += [(reject.reason, reject.detail) for reject in raw.rejects]
        kinds += [note.kind for note in raw.log.notes]
    return pairs, rejects, kinds


def put(folder, **texts):
    for stem, text in texts.items():
        (folder / f"{stem}.jpg").write_bytes(b"")
        content = text if isinstance(text, bytes) else text.encode()
        (folder / f"{stem}.txt").write_bytes(content)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_image_and_its_text_find_each_other_in_other_unicode_forms(tmp_path, form):
    other = "NFD" if form == "NFC" else "NFC"
    (tmp_path / unicodedata.normalize(form, "châlet.jpg")).write_bytes(b"")
    (tmp_path / unicodedata.normalize(other, "châlet.txt")).write_text("a hut in snow")
    pairs, rejects, _ = read(open_folder(tmp_path), tmp_path)
    assert [pair["caption"] for pair in pairs] == ["a hut in snow"]
    assert pairs[0]["image_uri"] == unicodedata.normalize(form, "châlet.jpg")
    assert rejects == []


def test_a_text_in_the_same_form_comes_first(tmp_path):
    for form in ("NFC", "NFD"):
        put(tmp_path, **{unicodedata.normalize(form, "é"): form})
    pairs, rejects, _ = read(open_folder(tmp_path), tmp_path)
    assert sorted(pair["caption"] for pair in pairs) == ["NFC", "NFD"]
    assert all(unicodedata.is_normalized(pair["caption"], pair["image_uri"]) for pair in pairs)
    assert rejects == []


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "pjpeg", "JPG", "Jpeg", "jif", "apng", "webp"])
def test_suffixes_of_allowed_formats_make_pairs(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a hut")
    pairs, rejects, _ = read(open_folder(tmp_path), tmp_path)
    assert [pair["image_uri"] for pair in pairs] == [f"a.{suffix}"]
    assert rejects == []


@pytest.mark.parametrize("suffix", ["tiff", "TIF", "avif", "jp2", "heic", "svg", "cr2", "jxl"])
def test_other_formats_are_named_with_what_is_allowed_and_take_their_text_along(tmp_path, suffix):
    put(tmp_path, good="a hut")
    (tmp_path / f"b.{suffix}").write_bytes(b"")
    (tmp_path / "b.txt").write_text("a barn")
    pairs, rejects, _ = read(open_folder(tmp_path), tmp_path)
    assert len(pairs) == 1
    ((reason, detail),) = rejects
    assert reason == "format_not_allowed"
    assert f"'b.{suffix}'" in detail
    assert "JPEG, PNG, WebP, GIF and BMP" in detail


def test_texts_may_be_utf16_by_their_mark(tmp_path):
    text = "ein Häuschen,\r\nganz klein\n"
    put(
        tmp_path,
        a=b"\xff\xfe" + text.encode("utf-16-le"),
        b=b"\xfe\xff" + text.encode("utf-16-be"),
        c=b"\xef\xbb\xbf" + text.encode(),
        d=b"\xff\xfe\0\0" + text.encode("utf-32-le"),
    )
    pairs, _, kinds = read(open_folder(tmp_path), tmp_path)
    assert [pair["caption"] for pair in pairs] == ["ein Häuschen,\nganz klein"] * 4
    assert kinds == ["marked_encoding"] * 3


def test_utf16_without_a_mark_is_refused_with_the_option_that_reads_it(tmp_path):
    put(tmp_path, a="a plain hut".encode("utf-16-be"))
    with pytest.raises(ConfigError, match=r"a\.txt looks like UTF-16 .* --encoding utf-16-be"):
        read(open_folder(tmp_path), tmp_path)
    reading = ReadConfig(encoding="utf-16-be")
    pairs, _, _ = read(open_folder(tmp_path, reading=reading), tmp_path)
    assert [pair["caption"] for pair in pairs] == ["a plain hut"]


def test_a_given_encoding_is_honoured_and_an_unknown_one_refused(tmp_path):
    put(tmp_path, a="œuvre à voir".encode("cp1252"))
    reader = open_folder(tmp_path, reading=ReadConfig(encoding="cp1252"))
    assert [pair["caption"] for pair in read(reader, tmp_path)[0]] == ["œuvre à voir"]
    assert reader.notes == ("texts are read as cp1252",)
    with pytest.raises(ConfigError, match="klingon"):
        open_folder(tmp_path, reading=ReadConfig(encoding="klingon"))


def test_every_file_is_a_pair_a_reject_or_a_note(tmp_path):
    put(tmp_path, a="one", b="two")
    for name in ("c.jpg", "d.txt", "e.tif", "f.json", "notes.pdf", "Makefile", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"x")
    pairs, rejects, kinds = read(open_folder(tmp_path), tmp_path)
    assert len(pairs) == 2
    assert sorted(reason for reason, _ in rejects) == [
        "format_not_allowed",
        "image_without_text",
        "text_without_image",
    ]
    assert kinds == ["other_file"] * 3


def test_a_text_that_is_a_dangling_link_leaves_its_image_without_text(tmp_path):
    put(tmp_path, a="one")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "b.txt").symlink_to("nowhere.txt")
    pairs, rejects, _ = read(open_folder(tmp_path), tmp_path)
    assert len(pairs) == 1
    ((reason, detail),) = rejects
    assert reason == "image_without_text"
    assert "leads nowhere" in detail


def test_the_image_root_says_what_inside_means_and_where_paths_start(tmp_path):
    source, store = tmp_path / "source", tmp_path / "store"
    for folder in (source, store):
        folder.mkdir()
    put(source, own="mine")
    put(store, other="theirs")
    (source / "link").symlink_to("../store")
    _, rejects, _ = read(open_folder(source), source)
    assert [reason for reason, _ in rejects] == ["path_escapes"]
    pairs, rejects, _ = read(open_folder(source, root=tmp_path), tmp_path)
    assert rejects == []
    assert [(pair["image_id"], pair["image_uri"]) for pair in pairs] == [
        ("own", "source/own.jpg"),
        ("link/other", "source/link/other.jpg"),
    ]
    with pytest.raises(ConfigError, match=r"source lies outside of --image-root .*store"):
        open_folder(source, root=store)


def test_a_plain_folder_has_no_extra_columns(tmp_path):
    put(tmp_path, a="one")
    with pytest.raises(ConfigError, match="--extra"):
        open_folder(tmp_path, Columns(text=("caption",), extra=("colour",)))
