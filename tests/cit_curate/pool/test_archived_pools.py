"""Pools whose images lie in archives, from the build to an export and back."""

import csv
import io
import json
import multiprocessing
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_fixtures import image_bytes, small_run
from spawned import total_bytes

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.images.read import ImageRejected
from cit_curate.pool.pool import Pool
from cit_curate.run.exports.export import export_webdataset
from cit_curate.run.report.thumbnails import pool_thumbnail
from cit_curate.sources.columns import Columns

WIDE = Columns(image="image", text=("t",))


def pairs_of(pool):
    table = pa.concat_tables([pq.read_table(pool.path / part.file.path) for part in pool.parts])
    return table.to_pylist()


def images_of(pool):
    return {
        f"{p['image_id']}_{p['text_key']}": pool.image_bytes(p["image_uri"], p["source"])
        for p in pairs_of(pool)
    }


def picture(number):
    return image_bytes(("red", "green", "blue")[number % 3], (8 + number, 6))


def zipped(folder, num_images=8, *, per_zip=3):
    """A table of images in zips, as YFCC has them."""
    folder.mkdir()
    (folder / "images").mkdir()
    rows = []
    for number in range(num_images):
        name = f"images/{number // per_zip:03d}.zip"
        with zipfile.ZipFile(folder / name, "a") as archive:
            archive.writestr(f"{number:03d}.png", picture(number))
        rows.append((f"{number:08d}", f"zip://{name}#{number:03d}.png", f"caption {number}"))
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image_id", "image", "t"), *rows])
    return folder / "table.csv"


def test_a_pool_of_zips_is_exported_and_its_export_is_a_pool(tmp_path):
    pool = Pool.build([zipped(tmp_path / "in")], tmp_path / "pool", columns=WIDE)
    assert pool.has_images
    assert pool.manifest.num_with_image == 8
    original = images_of(pool)
    assert original == {f"{number:08d}_t": picture(number) for number in range(8)}
    run = small_run(tmp_path / "run", pool=pool.path)
    exported = export_webdataset(run, pool, tmp_path / "shards", pairs_per_shard=3)
    assert (exported.num_pairs, exported.num_shards, exported.rejects) == (8, 3, {})
    again = Pool.build([tmp_path / "shards"], tmp_path / "again")
    assert [source.name for source in again.sources] == [
        f"shards/pairs-{number:06d}.tar" for number in range(3)
    ]
    assert images_of(again) == original
    assert [p["caption"] for p in pairs_of(again)] == [f"caption {n}" for n in range(8)]
    twice = export_webdataset(run, again, tmp_path / "twice", pairs_per_shard=3)
    assert twice == exported
    assert (tmp_path / "twice/pairs-000001.tar").read_bytes() == (
        tmp_path / "shards/pairs-000001.tar"
    ).read_bytes()


def test_the_report_shows_images_of_archives(tmp_path):
    pool = Pool.build([zipped(tmp_path / "in")], tmp_path / "pool", columns=WIDE)
    pair = pairs_of(pool)[0]
    assert pool_thumbnail(pool, pair["image_uri"], pair["source"]).uri.startswith("data:image")


@pytest.mark.faults("I5")
def test_a_zip_that_is_gone_or_damaged_is_named_and_others_are_read(tmp_path):
    pool = Pool.build([zipped(tmp_path / "in")], tmp_path / "pool", columns=WIDE)
    (tmp_path / "in/images/000.zip").unlink()
    (tmp_path / "in/images/001.zip").write_bytes(b"PK")
    found = {}
    for pair in pairs_of(pool):
        try:
            found[pair["image_id"]] = len(pool.image_bytes(pair["image_uri"], pair["source"]))
        except ImageRejected as rejected:
            found[pair["image_id"]] = rejected.reason
            assert f"00{int(pair['image_id']) // 3}.zip" in rejected.detail  # noqa: PT017
    assert list(found.values())[:6] == ["unreadable_archive"] * 6
    assert list(found.values())[6:] == [len(picture(6)), len(picture(7))]


@pytest.mark.faults("I7", "X3")
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("zip://../a.zip#x", "path_escapes"),
        ("zip://a/../../a.zip#x", "path_escapes"),
        ("tar:///etc/a.tar?offset=1&size=2", "path_escapes"),
        ("zip://a.zip", "bad_image_path"),
        ("arrow://a.arrow#x", "bad_image_path"),
        ("file:///etc/passwd", "bad_image_path"),
        ("pipe://cat", "bad_image_path"),
        ("s3://bucket/a.zip#x", "bad_image_path"),
    ],
)
def test_uris_that_lead_outside_or_nowhere_are_rejected_when_building(tmp_path, uri, reason):
    (tmp_path / "t.csv").write_text(f"image_id,image,t\n1,{uri},bad\n2,zip://./a.zip#../x,good\n")
    pool = Pool.build(
        [tmp_path / "t.csv"],
        tmp_path / "pool",
        columns=WIDE,
        max_reject_ratio=1,
        allow_missing_images=True,
    )
    assert pool.manifest.rejects == {reason: 1}
    assert [p["image_uri"] for p in pairs_of(pool)] == ["zip://a.zip#../x"]


def test_absolute_paths_to_archives_become_relative(tmp_path):
    table = zipped(tmp_path / "in")
    lines = table.read_text().replace("zip://", f"zip://{tmp_path / 'in'}/")
    (tmp_path / "t.csv").write_text(lines)
    pool = Pool.build(
        [tmp_path / "t.csv"], tmp_path / "pool", columns=WIDE, image_root=tmp_path / "in"
    )
    assert pairs_of(pool)[0]["image_uri"] == "zip://images/000.zip#000.png"
    assert len(images_of(pool)) == 8


@pytest.mark.faults("S1")
def test_a_damaged_tar_stops_the_build_and_leaves_nothing(tmp_path):
    shards = tmp_path / "shards"
    pool = Pool.build([zipped(tmp_path / "in")], tmp_path / "pool", columns=WIDE)
    export_webdataset(small_run(tmp_path / "run"), pool, shards, pairs_per_shard=3)
    content = (shards / "pairs-000001.tar").read_bytes()
    (shards / "pairs-000001.tar").write_bytes(content[:3000])
    with pytest.raises(DamagedError, match=r"pairs-000001\.tar"):
        Pool.build([shards], tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.faults("S2")
def test_interleaved_tars_are_over_the_limit(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.jpg", "b.jpg", "a.txt", "b.txt", "c.jpg", "c.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(BadInputError, match=r"sample 'a': it came before.*--sort=name"):
        Pool.build([tmp_path / "a.tar"], tmp_path / "pool")


def test_a_wrong_json_field_is_over_the_limit(tmp_path):
    pool = Pool.build([zipped(tmp_path / "in")], tmp_path / "pool", columns=WIDE)
    export_webdataset(small_run(tmp_path / "run"), pool, tmp_path / "shards")
    with pytest.raises(BadInputError, match=r"no pair came of them.*no text in titel"):
        Pool.build([tmp_path / "shards"], tmp_path / "b", columns=Columns(text=("titel",)))
    with pytest.raises(BadInputError, match=r"no pair came of them.*image id is empty"):
        Pool.build(
            [tmp_path / "shards"],
            tmp_path / "b",
            columns=Columns(image_id="none", text=("caption",)),
        )


def test_a_zip_as_a_source_is_told_how_to_name_it(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"zip://PATH\.zip#MEMBER"):
        Pool.build([tmp_path / "a.zip"], tmp_path / "pool")


def test_json_lines_with_zips_make_the_same_pairs_as_the_table(tmp_path):
    table = zipped(tmp_path / "in")
    with table.open(newline="") as stream, (tmp_path / "in/t.jsonl").open("w") as out:
        for row in csv.DictReader(stream):
            out.write(json.dumps(row) + "\n")
    one = Pool.build([table], tmp_path / "one", columns=WIDE)
    two = Pool.build([tmp_path / "in/t.jsonl"], tmp_path / "two", columns=WIDE)
    without_source = [
        [{name: value for name, value in pair.items() if name != "source"} for pair in pairs_of(p)]
        for p in (one, two)
    ]
    assert without_source[0] == without_source[1]


@pytest.mark.faults("I8")
@pytest.mark.slow
def test_spawned_workers_read_the_same_pool(tmp_path):
    pool = Pool.build([zipped(tmp_path / "in")], tmp_path / "pool", columns=WIDE)
    here = sum(map(len, images_of(pool).values()))
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        assert workers.map(total_bytes, [pool.path] * 4) == [here] * 4
