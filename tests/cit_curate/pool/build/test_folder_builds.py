"""Pools of image folders: links, suffixes, folders without captions, and what a build says."""

import io

import pytest
from PIL import Image

from cit_curate.config import ReadConfig
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.pool.build.source_entries import changed_sources
from cit_curate.pool.build.summary import read_build_report
from cit_curate.pool.pool import Pool
from cit_curate.sources.source import find_sources


def encoded(kind="JPEG"):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "teal").save(stream, kind)
    return stream.getvalue()


def put(folder, name, kind="JPEG", caption="a teal sheet"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded(kind))
    (folder / name).with_suffix(".txt").write_text(f"{caption} {name}")


def uris_of(pool):
    rows = pool.read_row_groups(range(len(pool.row_groups)))
    return dict(zip(rows["image_id"].to_pylist(), rows["image_uri"].to_pylist(), strict=True))


@pytest.fixture
def linked(tmp_path):
    source = tmp_path / "top" / "source"
    for number in range(3):
        put(tmp_path / "top" / "store" / "a", f"{number}.jpg")
    put(source, "own.jpg")
    put(source / "inner", "i.jpg")
    for link, target in (("out", "../store/a"), ("in", "inner"), ("loop", "."), ("gone", "none")):
        (source / link).symlink_to(target)
    return source


def test_links_are_rejects_or_counted_and_cost_no_build(linked, tmp_path):
    pool = Pool.build([linked], tmp_path / "pool")
    assert pool.manifest.rejects == {"missing_image": 1, "path_escapes": 1}
    assert set(uris_of(pool)) == {"own", "inner/i"}
    report = read_build_report(pool.path)
    assert report.counts["num_links_not_followed"] == 2
    assert any(f"--image-root {linked.parent}" in warning for warning in report.warnings)


def test_an_image_root_above_lets_links_be_followed_and_the_images_open(linked, tmp_path):
    pool = Pool.build([linked], tmp_path / "pool", image_root=linked.parent)
    assert pool.manifest.rejects == {"missing_image": 1}
    assert pool.manifest.num_with_image == 5
    uris = uris_of(pool)
    assert uris["out/0"] == "source/out/0.jpg"
    assert all(pool.image_bytes(uri, "source") == encoded() for uri in uris.values())
    # What lies behind a link belongs to the source.
    assert changed_sources(pool.manifest) == []
    put(linked.parent / "store" / "a", "new.jpg")
    assert len(changed_sources(pool.manifest)) == 1


def test_an_image_root_beside_the_folder_is_refused(linked, tmp_path):
    with pytest.raises(ConfigError, match="lies outside of --image-root"):
        Pool.build([linked], tmp_path / "pool", image_root=linked.parent / "store")


def test_a_folder_of_links_to_files_outside_is_refused_with_the_way_out(tmp_path):
    put(tmp_path / "blobs", "0.jpg")
    (tmp_path / "shown").mkdir()
    for name in ("0.jpg", "0.txt"):
        (tmp_path / "shown" / name).symlink_to(tmp_path / "blobs" / name)
    with pytest.raises(BadInputError, match=rf"path_escapes 1 .*--image-root {tmp_path}"):
        Pool.build([tmp_path / "shown"], tmp_path / "pool")
    pool = Pool.build([tmp_path / "shown"], tmp_path / "pool", image_root=tmp_path)
    assert pool.manifest.num_with_image == 1


def test_suffixes_of_jpeg_are_pairs_and_other_formats_end_with_a_warning(tmp_path):
    names = ("a.jfif", "b.jpe", "c.pjpeg", "d.JPG")
    for name in names:
        put(tmp_path / "in", name)
    for name, kind in (("e.tiff", "TIFF"), ("g.jp2", "JPEG2000")):
        put(tmp_path / "in", name, kind)
    pool = Pool.build([tmp_path / "in"], tmp_path / "pool")
    assert pool.manifest.rejects == {"format_not_allowed": 2}
    assert pool.manifest.num_with_image == 4
    report = read_build_report(pool.path)
    assert report.counts["num_images_opened"] == 4
    (warning,) = report.warnings
    assert "2 of 6 records (33%) are rejected as format_not_allowed" in warning
    assert "JPEG, PNG, WebP, GIF and BMP" in warning


def test_class_folders_without_captions_are_explained(tmp_path):
    for name in ("barn", "hut"):
        put(tmp_path / "in" / name, "0.jpg")
        (tmp_path / "in" / name / "0.txt").unlink()
    with pytest.raises(BadInputError) as caught:
        Pool.build([tmp_path / "in"], tmp_path / "pool")
    message = str(caught.value)
    for words in ("image_without_text 2", "file_name and text", "'barn', 'hut'", "cit eval"):
        assert words in message
    (tmp_path / "in" / "captions.csv").write_text("image,caption\nbarn/0.jpg,a barn\n")
    with pytest.raises(BadInputError, match=r"cit pool build .*captions\.csv --image COLUMN"):
        Pool.build([tmp_path / "in"], tmp_path / "pool")


def test_other_files_and_marked_texts_are_in_the_report(tmp_path):
    put(tmp_path / "in", "0.jpg")
    (tmp_path / "in" / "0.json").write_text("{}")
    (tmp_path / "in" / "0.txt").write_bytes(b"\xff\xfe" + "eine Hütte".encode("utf-16-le"))
    report = read_build_report(Pool.build([tmp_path / "in"], tmp_path / "pool").path)
    assert report.counts["num_other_files"] == 1
    assert any("1 other file not read, such as '0.json'" in note for note in report.notes)
    assert any("1 text read as utf-16 by the mark in it" in note for note in report.notes)


def test_the_encoding_of_texts_is_that_of_the_source(tmp_path):
    put(tmp_path / "in", "0.jpg")
    (tmp_path / "in" / "0.txt").write_bytes("œuvre".encode("cp1252"))
    (source,) = find_sources([tmp_path / "in"], reading=ReadConfig(encoding="cp1252"))
    assert source.reading.encoding == "cp1252"
    from cit_curate.pool.build.ingest import build_pool

    build_pool([source], tmp_path / "pool", columns=None)
    pool = Pool.open(tmp_path / "pool")
    assert pool.read_row_groups([0])["caption"].to_pylist() == ["œuvre"]
    assert read_build_report(pool.path).counts["num_text_fixed"] == 0
