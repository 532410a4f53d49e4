"""A build looks at images: which are there, which open, and which paths are repaired."""

import csv
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from run_fixtures import image_bytes

from cit_curate.errors import BadInputError
from cit_curate.pool.build import image_look
from cit_curate.pool.build.image_look import sampled_rows
from cit_curate.pool.build.summary import read_build_report
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns

COLUMNS = Columns(image_id="id", image="image", caption="caption")


def table(path, images, *, captions=1):
    """A CSV of images with some captions each."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("id", "image", "caption"))
        for number, image in enumerate(images):
            for caption in range(captions):
                writer.writerow((f"{number:06d}-{caption}", image, f"picture {number} {caption}"))
    return path


def pictures(folder, count, name="{:03d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / name.format(number)).write_bytes(image_bytes())


def built(tmp_path, images, **options):
    options = {"columns": COLUMNS, **options}
    pool = Pool.build([table(tmp_path / "t.csv", images)], tmp_path / "pool", **options)
    return pool, read_build_report(pool.path)


def uris_of(pool):
    groups = range(len(pool.row_groups))
    return pool.read_row_groups(list(groups))["image_uri"].to_pylist()


def test_all_there(tmp_path):
    pictures(tmp_path, 4)
    pool, report = built(tmp_path, [f"{n:03d}.png" for n in range(4)])
    assert pool.manifest.num_with_image == 4
    assert report.warnings == ()
    assert "looked for 4 images: 4 are there, 4 of them were opened" in report.notes
    names = ("num_images_tried", "num_images_found", "num_images_opened", "num_paths_repaired")
    assert [report.counts[name] for name in names] == [4, 4, 4, 0]


def test_some_missing_is_a_warning_with_the_count_and_the_first(tmp_path):
    pictures(tmp_path, 3)
    pool, report = built(tmp_path, ["000.png", "001.png", "077.png", "002.png"])
    assert (pool.num_pairs, pool.manifest.num_with_image) == (4, 3)
    (warning,) = report.warnings
    assert f"1 of 4 images is not there; the first: {tmp_path.resolve()}/077.png" in warning


def test_none_there_stops_the_build_unless_allowed(tmp_path):
    images = ["photos/a.jpg", "photos/b.jpg"]
    with pytest.raises(BadInputError, match=r"none of its images is there") as caught:
        built(tmp_path, images)
    message = str(caught.value)
    assert f"the first is {tmp_path.resolve()}/photos/a.jpg" in message
    assert "--allow-missing-images" in message
    assert not (tmp_path / "pool").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    pool, report = built(tmp_path, images, allow_missing_images=True)
    assert pool.manifest.num_with_image == 0
    assert pool.has_images  # they may come
    assert "2 of 2 images are not there" in report.warnings[0]


def test_one_source_without_any_image_stops_the_build_and_is_named(tmp_path):
    pictures(tmp_path, 2)
    good = table(tmp_path / "good.csv", ["000.png", "001.png"])
    bad = table(tmp_path / "bad.csv", ["x/0.jpg"])
    with pytest.raises(BadInputError, match=r"bad\.csv: none"):
        Pool.build([good, bad], tmp_path / "pool", columns=COLUMNS)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("sub\\{:03d}.png", "sub/{:03d}.png"),
        (" sub/{:03d}.png  ", "sub/{:03d}.png"),
        (".\\sub\\{:03d}.png", "sub/{:03d}.png"),
        ("zip://sub\\z.zip#{:03d}.png", "zip://sub/z.zip#{:03d}.png"),
        (
            unicodedata.normalize("NFC", "sub/fenêtre{:03d}.png"),
            unicodedata.normalize("NFD", "sub/fenêtre{:03d}.png"),
        ),
        (
            unicodedata.normalize("NFD", "sub\\noël{:03d}.png"),
            unicodedata.normalize("NFC", "sub/noël{:03d}.png"),
        ),
    ],
)
def test_paths_are_repaired_and_what_worked_is_stored(tmp_path, written, there):
    if there.startswith("zip"):
        (tmp_path / "sub").mkdir()
        with zipfile.ZipFile(tmp_path / "sub" / "z.zip", "w") as archive:
            for number in range(3):
                archive.writestr(f"{number:03d}.png", image_bytes())
    else:
        pictures((tmp_path / there).parent, 3, Path(there).name)
    pool, report = built(tmp_path, [written.format(n) for n in range(3)])
    assert uris_of(pool) == [there.format(n) for n in range(3)]
    assert pool.manifest.num_with_image == 3
    assert report.counts["num_paths_repaired"] == 3
    assert any("3 paths are not there as written and mended" in note for note in report.notes)
    assert all(pool.image_bytes(uri, "t.csv") for uri in uris_of(pool))


def test_only_paths_that_are_not_there_as_written_are_repaired(tmp_path):
    pictures(tmp_path / "sub", 2)
    odd = "sub\\001.png"
    (tmp_path / odd).write_bytes(image_bytes())
    pool, report = built(tmp_path, ["sub\\000.png", odd, "sub\\gone.png"])
    assert uris_of(pool) == ["sub/000.png", odd, "sub\\gone.png"]
    assert report.counts["num_paths_repaired"] == 1
    assert pool.manifest.num_with_image == 2


def test_a_repair_never_leads_outside_of_the_root(tmp_path):
    pictures(tmp_path / "in", 1)
    pictures(tmp_path / "out", 1)
    images = ["000.png", "..\\out\\000.png"]
    pool, _ = built(tmp_path, images, image_root=tmp_path / "in")
    assert uris_of(pool) == images
    assert pool.manifest.num_with_image == 1


def test_repaired_paths_of_scattered_rows_of_an_image_count_once(tmp_path):
    pictures(tmp_path / "sub", 2)
    rows = [("id", "image", "kind", "caption")]
    for number in range(3):
        for image in range(2):
            rows.append((image, f"sub\\{image:03d}.png", f"k{number}", f"text {number} {image}"))
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    columns = Columns(image_id="id", image="image", text_key="kind", caption="caption")
    pool = Pool.build([tmp_path / "t.csv"], tmp_path / "pool", columns=columns)
    assert set(uris_of(pool)) == {"sub/000.png", "sub/001.png"}
    assert pool.num_pairs == 6
    assert read_build_report(pool.path).counts["num_paths_repaired"] == 2


def test_images_that_do_not_open_are_a_warning(tmp_path):
    pictures(tmp_path, 3)
    (tmp_path / "001.png").write_bytes(b"<html>404</html>")
    pool, report = built(tmp_path, [f"{n:03d}.png" for n in range(3)])
    assert pool.manifest.num_with_image == 3
    (warning,) = report.warnings
    assert "1 of 3 images does not open" in warning
    assert "001.png: format_not_allowed" in warning
    assert report.counts["num_images_opened"] == 2


def test_web_addresses_and_rows_without_an_image_are_not_looked_at(tmp_path, network_attempts):
    pool, report = built(tmp_path, ["https://images.example.org/a.jpg", ""])
    assert pool.manifest.num_with_image == 0
    assert report.counts["num_images_tried"] == 0
    assert not any("looked for" in note for note in report.notes)
    assert network_attempts == []


def test_members_of_tars_and_zips_are_opened(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        pictures(tmp_path / "in", 2)
        for number in range(2):
            archive.add(tmp_path / "in" / f"{number:03d}.png", f"{number}.png")
            (tmp_path / "in" / f"{number}.txt").write_text(f"text {number}")
            archive.add(tmp_path / "in" / f"{number}.txt", f"{number}.txt")
    pool = Pool.build([tmp_path / "a.tar"], tmp_path / "tars")
    counts = read_build_report(pool.path).counts
    assert (counts["num_images_found"], counts["num_images_opened"]) == (2, 2)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("0.png", image_bytes())
    pool, report = built(tmp_path, ["zip://z.zip#0.png", "zip://z.zip#1.png", "zip://y.zip#0.png"])
    assert pool.manifest.num_with_image == 1
    assert "2 of 3 images are not there" in report.warnings[0]


def test_a_large_source_is_sampled_over_all_rows_and_counted_in_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr(image_look, "MAX_TRIED", 50)
    pictures(tmp_path, 1)
    # The first half is there, the second is not.
    images = ["000.png"] * 3000 + [f"gone/{n}.png" for n in range(3000)]
    pool, report = built(tmp_path, images)
    assert pool.manifest.num_with_image == 3000
    assert report.counts["num_images_tried"] == 26
    assert any("of 50 rows, spread over all 6,000" in note for note in report.notes)
    assert "25 of 26 images that were tried are not there" in report.warnings[0]


def test_repairs_go_by_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(image_look, "MAX_TRIED", 20)
    pictures(tmp_path / "sub", 1)
    pool, report = built(tmp_path, ["sub\\000.png"] * 400)
    assert set(uris_of(pool)) == {"sub/000.png"}
    assert report.counts["num_paths_repaired"] == 1
    assert pool.manifest.num_with_image == 400


@pytest.mark.parametrize(("num_rows", "most"), [(0, 5), (4, 5), (5, 5), (6, 5), (1000, 7)])
def test_a_sample_has_one_row_of_each_stretch(num_rows, most):
    rows = sampled_rows(num_rows, most, 3)
    assert len(rows) == min(num_rows, most)
    assert (np.diff(rows) >= 0).all()
    if num_rows > most:
        assert (np.floor(rows * most / num_rows) - np.arange(most) >= -1).all()
        assert rows[0] < num_rows / most + 1
        assert rows[-1] >= num_rows - num_rows / most - 1
    np.testing.assert_array_equal(rows, sampled_rows(num_rows, most, 3))


def test_two_builds_are_equal_byte_for_byte(tmp_path):
    pictures(tmp_path / "sub", 3)
    images = [f"sub\\{n % 3:03d}.png" for n in range(30)]
    one, _ = built(tmp_path, images)
    other = Pool.build([tmp_path / "t.csv"], tmp_path / "again", columns=COLUMNS)
    assert one.fingerprint == other.fingerprint
