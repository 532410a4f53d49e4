"""Pools in a bucket of a local S3 server: built, opened, verified, asked, and their images."""

import csv
import io
import json
import logging
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_fixtures import image_bytes, small_run

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.images.read import ImageRejected
from cit_curate.pool.check import verify_pool
from cit_curate.pool.commands import build, info, verify
from cit_curate.pool.order import ScanOrder
from cit_curate.pool.pool import Pool
from cit_curate.run.commands import export, query, report
from cit_curate.sources.columns import Columns
from cit_curate.storage.remote import list_files, read_range, stat_file
from cit_curate.storage.remote_cache import copies_folder

KEYS = ("image_id", "text_key", "caption", "image_uri", "source")


@pytest.fixture(scope="module")
def endpoint():
    """The address of a local S3 server; no other is ever asked."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch):
    """An empty bucket, credentials in the environment alone, and an empty cache."""
    import boto3
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "CIT_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr("cit_curate.storage.remote.FIRST_WAIT_SECONDS", 0.0)
    name = f"b{abs(hash(tmp_path))}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def put(url: str, data: bytes) -> None:
    import boto3

    name, _, key = url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=name, Key=key, Body=data)


def picture(number: int) -> bytes:
    return image_bytes(("red", "green", "blue")[number % 3], (8 + number, 6))


def rows_of(pool: Pool) -> list[dict[str, object]]:
    return pool.read_row_groups(range(len(pool.row_groups))).to_pylist()


def table(folder: Path, images: list[str]) -> Path:
    path = folder / "table.csv"
    with path.open("w", newline="") as stream:
        rows = [(f"{n:08d}", image, f"a picture of thing {n}") for n, image in enumerate(images)]
        csv.writer(stream).writerows([("image_id", "image", "t"), *rows])
    return path


def image_pool(bucket: str, folder: Path) -> str:
    """A pool in the bucket with images in single files, a zip and a tar of its image root."""
    images, root = [], f"{bucket}/images"
    packed, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for n in range(4, 8):
            archive.writestr(f"{n}.png", picture(n))
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for n in range(8, 12):
            entry = tarfile.TarInfo(f"{n}.png")
            entry.size = len(picture(n))
            archive.addfile(entry, io.BytesIO(picture(n)))
    put(f"{root}/some.zip", packed.getvalue())
    put(f"{root}/some.tar", tar.getvalue())
    for n in range(4):
        put(f"{root}/single/{n}.png", picture(n))
    images += [f"single/{n}.png" for n in range(3)] + [f"{root}/single/3.png"]
    images += [f"zip://some.zip#{n}.png" for n in range(4, 8)]
    with tarfile.open(fileobj=io.BytesIO(tar.getvalue())) as archive:
        images += [f"tar://some.tar?offset={m.offset_data}&size={m.size}#{m.name}" for m in archive]
    build(
        (table(folder, images),), Path(f"{bucket}/pool"), image="image", text="t",
        image_root=Path(root), json=True,
    )  # fmt: skip
    return f"{bucket}/pool"


@pytest.mark.slow
def test_a_pool_is_built_into_a_bucket_and_reads_as_from_a_disk(bucket, tmp_path, capsys):
    url = image_pool(bucket, tmp_path)
    summary = json.loads(capsys.readouterr().out)
    assert (summary["path"], summary["num_pairs"]) == (url, 12)
    assert "pool.duckdb" not in list_files(url)
    local = Pool.build(
        [tmp_path / "table.csv"], tmp_path / "local",
        columns=Columns(image="image", text=("t",)), image_root=f"{bucket}/images",
    )  # fmt: skip
    pool = Pool.open(Path(url))
    assert pool.fingerprint == local.fingerprint
    assert rows_of(pool) == rows_of(local)
    assert (pool.location, pool.named) == (url, url)
    info(Path(url), json=True)
    assert json.loads(capsys.readouterr().out)["path"] == url
    verify(Path(url))
    assert f"{url}: every file is as it was written" in capsys.readouterr().out
    for opened in (pool, local):
        read = [opened.image_bytes(row["image_uri"], row["source"]) for row in rows_of(opened)]
        assert read == [picture(n) for n in range(12)]


@pytest.mark.slow
def test_opening_fetches_no_part_and_reading_only_those_that_are_needed(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr("cit_curate.pool.parts.PART_ROWS", 4)
    url = image_pool(bucket, tmp_path)
    pool = Pool.open(url)
    assert len(pool.parts) == 3
    assert not list(copies_folder().glob("files/*/*"))
    pool.read_row_groups([g for g, group in enumerate(pool.row_groups) if group.part == 1])
    (copy,) = copies_folder().glob("files/*/*")
    assert copy.name.endswith("part-000001.parquet")
    order = ScanOrder(pool, seed=1, texts="every")
    rows = order.rows(0, 12)
    assert sorted(rows["image_id"].to_pylist()) == [f"{n:08d}" for n in range(12)]


def test_embedded_images_are_read_from_remote_parquet_arrow_and_web_datasets(bucket, tmp_path):
    cells = pa.table(
        {"image_id": ["a", "b"], "t": ["one", "two"], "image": [picture(0), picture(1)]}
    )
    pq.write_table(cells, tmp_path / "cells.parquet")
    put(f"{bucket}/in/cells.parquet", (tmp_path / "cells.parquet").read_bytes())
    pool = Pool.build(
        [f"{bucket}/in/cells.parquet"], tmp_path / "p", columns=Columns(image="image", text=("t",))
    )
    (source,) = pool.sources
    assert (source.path, source.image_root) == (f"{bucket}/in/cells.parquet", f"{bucket}/in")
    read = [pool.image_bytes(row["image_uri"], row["source"]) for row in rows_of(pool)]
    assert read == [picture(0), picture(1)]
    with (
        pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, cells.schema) as out,
    ):
        out.write_table(cells)
    put(f"{bucket}/in/x.arrow", (tmp_path / "x.arrow").read_bytes())
    assert pool.image_bytes("arrow://x.arrow?column=image&row=1", source.name) == picture(1)

    for number in range(2):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, data in ((f"k{number}.png", picture(number)), (f"k{number}.txt", b"cap")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        put(f"{bucket}/shards/{number:03d}.tar", stream.getvalue())
    for given in (f"{bucket}/shards", f"{bucket}/shards/{{000..001}}.tar"):
        pool = Pool.build([Path(given)], tmp_path / "w", columns=Columns(), overwrite=True)
        assert pool.manifest.num_with_image == 2
        read = [pool.image_bytes(row["image_uri"], row["source"]) for row in rows_of(pool)]
        assert read == [picture(0), picture(1)]
    assert verify_pool(tmp_path / "w") == []


def test_only_ranges_of_an_archive_are_read(bucket, tmp_path, monkeypatch):
    url = image_pool(bucket, tmp_path)
    large = io.BytesIO()
    with zipfile.ZipFile(large, "w") as archive:
        archive.writestr("first.png", picture(0))
        archive.writestr("filler", bytes(3 << 20))
    put(f"{bucket}/images/large.zip", large.getvalue())
    asked = []

    def counted(url, start=0, end=None):
        asked.append(end - start)
        return read_range(url, start, end)

    monkeypatch.setattr("cit_curate.images.root.read_range", counted)
    pool = Pool.open(url)
    assert pool.image_bytes("zip://large.zip#first.png", "table.csv") == picture(0)
    assert sum(asked) < 1 << 20
    asked.clear()
    assert pool.image_bytes("zip://large.zip#first.png", "table.csv") == picture(0)
    assert len(asked) == 1  # Its table of contents is remembered; header and bytes are one range.


def test_an_image_that_is_not_there_or_leads_out_is_rejected(bucket, tmp_path):
    pool = Pool.open(image_pool(bucket, tmp_path))
    put(f"{bucket}/images/empty.png", b"")
    put(f"{bucket}/secret.png", picture(0))
    assert pool.image_bytes("empty.png", "table.csv") == b""
    for uri, reason in (
        ("none.png", "missing_image"),
        ("zip://none.zip#a.png", "unreadable_archive"),
        ("../secret.png", "path_escapes"),
        ("/secret.png", "path_escapes"),
        ("zip://../x.zip#a.png", "path_escapes"),
        ("https://host/a.png", "no_image"),
    ):
        with pytest.raises(ImageRejected) as caught:
            pool.image_bytes(uri, "table.csv")
        assert caught.value.reason == reason, uri
    with pytest.raises(ImageRejected, match="more than 5"):
        pool.image_bytes("single/0.png", "table.csv", max_bytes=5)


@pytest.mark.faults("X3")
def test_a_manifest_in_a_bucket_chooses_no_file_of_this_machine_and_no_other_bucket(
    bucket, tmp_path
):
    url = image_pool(bucket, tmp_path)
    manifest = json.loads(read_range(f"{url}/pool.json"))
    del manifest["json_sha256"]  # who can change a manifest can do without
    part = manifest["parts"][0]["file"]["path"]
    for name in ("../pool/" + part, "/etc/passwd"):
        manifest["parts"][0]["file"]["path"] = name
        put(f"{url}/pool.json", json.dumps(manifest).encode())
        with pytest.raises(DamagedError, match="outside"):
            Pool.open(url)
    manifest["parts"][0]["file"]["path"] = part
    for root in ("/etc", "s3://other-bucket/images"):
        manifest["sources"][0]["image_root"] = root
        put(f"{url}/pool.json", json.dumps(manifest).encode())
        with pytest.raises(ConfigError, match="from that bucket alone"):
            Pool.open(url).image_bytes("passwd", "table.csv")


@pytest.mark.faults("S3")
@pytest.mark.slow
def test_a_pool_that_is_cut_changed_or_absent_is_named(bucket, tmp_path):
    with pytest.raises(ConfigError, match="no pool"):
        Pool.open(f"{bucket}/none")
    with pytest.raises(ConfigError, match="no pool"):
        Pool.open("s3://no-such-bucket/pool")
    url = image_pool(bucket, tmp_path)
    part = f"{url}/pairs/part-000000.parquet"
    data = read_range(part)
    put(f"{url}/pairs/part-000009.parquet", data)
    with pytest.raises(DamagedError, match="belongs to no manifest"):
        verify_pool(Path(url))
    put(part, data[:-1] + b"x")
    with pytest.raises(DamagedError, match="SHA-256 differs"):
        rows_of(Pool.open(url))
    with pytest.raises(DamagedError, match="SHA-256 differs"):
        verify_pool(Path(url))
    put(part, data[:-1])
    with pytest.raises(DamagedError, match="its manifest says"):
        Pool.open(url)


def test_a_pool_is_not_put_where_something_is_nor_as_an_overwrite(bucket, tmp_path):
    url = image_pool(bucket, tmp_path)
    options = {"image": "image", "text": "t", "image_root": Path(f"{bucket}/images")}
    with pytest.raises(ConfigError, match="files in it"):
        build((tmp_path / "table.csv",), Path(url), **options)
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        build((tmp_path / "table.csv",), Path(url), overwrite=True, **options)


@pytest.mark.faults("P1")
def test_rejects_that_stop_a_build_into_a_store_are_listed_here(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("image_id,t\n1,a cat\n2\n")
    listed = tmp_path / "p.rejects.parquet"
    for _ in range(2):
        with pytest.raises(BadInputError, match=rf"1 of 2 rows .* are listed in {listed}$"):
            build((tmp_path / "table.csv",), Path(f"{bucket}/p"), text="t")
        assert pq.read_table(listed)["reason"].to_pylist() == ["column_count"]
    assert not list_files(f"{bucket}/p")


def test_a_pool_whose_images_stay_local_says_so(bucket, tmp_path, caplog):
    (tmp_path / "0.png").write_bytes(picture(0))
    with caplog.at_level(logging.WARNING):
        build(
            (table(tmp_path, ["0.png"]),), Path(f"{bucket}/p"), image="image", text="t", json=True
        )
    assert "--image-root URL" in caplog.text


@pytest.mark.slow
def test_query_export_and_report_read_a_remote_pool_that_is_named(bucket, tmp_path, capsys, caplog):
    url = image_pool(bucket, tmp_path)
    capsys.readouterr()
    run = small_run(tmp_path / "run", pool=url).path
    config = json.loads((run / "config.json").read_text())
    config["pool"] = url
    (run / "config.json").write_text(json.dumps(config))

    # The run alone asks no store; a query that is not about pairs does not either.
    with caplog.at_level(logging.WARNING):
        query(run, "SELECT count(*) AS n FROM selections", json=True)
    assert json.loads(capsys.readouterr().out) == [{"n": 14}]
    assert "--pool" in caplog.text
    assert not list(copies_folder().glob("files/*/*"))
    query(run, "SELECT count(caption) AS n FROM pairs", pool=(url,), json=True)
    assert json.loads(capsys.readouterr().out) == [{"n": 12}]

    for name in ("counts.parquet", "counts.csv", "counts.json"):
        out = f"{bucket}/out/{name}"
        export(run, Path(out), pool=(url,), json=True)
        assert json.loads(capsys.readouterr().out)["path"] == out
        export(run, tmp_path / name, pool=(url,), json=True)
        assert read_range(out) == (tmp_path / name).read_bytes()
        capsys.readouterr()
    export(run, Path(f"{bucket}/out/shards"), pool=(url,), json=True)
    assert json.loads(capsys.readouterr().out)["num_pairs"] == 8
    there = list_files(f"{bucket}/out/shards").keys()
    manifests = {"pairs-000000.json", "pairs.json", "rejects.parquet"}
    assert there == {"pairs-000000.tar", "README.md", *(f"__manifests__/{m}" for m in manifests)}
    with pytest.raises(ConfigError, match="files in it"):
        export(run, Path(f"{bucket}/out/shards"), pool=(url,))
    report(run, out=Path(f"{bucket}/out/report.html"), pool=(url,), json=True)
    assert b"data:image/webp" in read_range(f"{bucket}/out/report.html")
    assert "very-secret" not in capsys.readouterr().out
    assert not list(copies_folder().rglob("*very-secret*"))


def test_an_export_into_a_bucket_that_is_not_there_is_refused(bucket, tmp_path):
    run = small_run(tmp_path / "run").path
    with pytest.raises(ConfigError, match="no such bucket"):
        export(run, Path("s3://no-such-bucket/counts.json"))
    assert stat_file(f"{bucket}/counts.json") is None
