"""Formats of sources through `cit pool build`: what is read, and how what is not read ends."""

import bz2
import csv
import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runs import Cit, Ended

TEXTS = [f"a bell that rings {number} times" for number in range(40)]
FIRST_ID = 3_000_000_000_000


def written(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *rows])
    return path


def build(cit: Cit, out: Path, *args: object) -> dict[str, Any]:
    """What a build that ends well prints as JSON."""
    ended = cit("pool", "build", *args, "--out", out, "--overwrite", "--json")
    assert ended.code == 0, ended.err
    built: dict[str, Any] = json.loads(ended.out)
    return built


def refused(cit: Cit, out: Path, *args: object) -> Ended:
    """How a build that makes no pool ends."""
    ended = cit("pool", "build", *args, "--out", out)
    assert (ended.out, out.exists()) == ("", False), args
    assert "bug in cit" not in ended.err
    assert "\0" not in ended.err
    return ended


def test_json_is_read_whatever_shape_it_has(cit: Cit, tmp_path: Path) -> None:
    images = [{"id": 900 + n, "file_name": f"{n}.png"} for n in range(4)]
    annotations = [
        {"id": 10 + n, "image_id": 900 + n % 4, "caption": text} for n, text in enumerate(TEXTS[:4])
    ]
    dangling = {"id": 77, "image_id": 999, "caption": "of nothing"}
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": [*annotations, dangling]}))
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(b"")
    built = build(cit, tmp_path / "p", path)
    assert (built["num_pairs"], built["num_images"], built["num_with_image"]) == (4, 4, 4)
    assert (built["text_keys"], built["rejects"]) == ({"caption": 4}, {"text_without_image": 1})
    reject = pq.read_table(tmp_path / "p/rejects/part-000000.parquet").to_pylist()[0]
    assert reject["detail"] == "annotation 77: there is no image 999 among the images"
    rows = [{"id": n, "text": text} for n, text in enumerate(TEXTS)]
    flags = ("--image-id", "id", "--text", "text", "--max-reject-ratio", "0.1")
    for name in ("a.json", "a.jsonl"):
        path = tmp_path / name
        path.write_text(json.dumps([*rows[:7], "no object", *rows[7:]]))
        built = build(cit, tmp_path / "p", path, *flags)
        assert (built["num_pairs"], built["rejects"]) == (40, {"bad_row": 1})
        (reject,) = pq.read_table(tmp_path / "p/rejects/part-000000.parquet").to_pylist()
        assert (reject["row"], reject["detail"][:9]) == (8, "element 8")
    instances = tmp_path / "instances.json"
    instances.write_text(json.dumps({"images": images, "annotations": [{"id": 1, "bbox": []}]}))
    ended = refused(cit, tmp_path / "none", instances)
    assert ended.code == 2
    assert "object instances, no captions" in ended.err


def test_ids_of_every_exact_type_are_read_and_others_refused(cit: Cit, tmp_path: Path) -> None:
    texts = [None, *TEXTS[1:]]
    numbers = [float(FIRST_ID + 7 * n) for n in range(40)]
    path = tmp_path / "t.parquet"
    flags = (path, "--image-id", "id", "--text", "text")

    def write(ids: pa.Array) -> None:
        pq.write_table(pa.table({"id": ids, "text": texts}), path)

    write(pa.array(numbers))
    built = build(cit, tmp_path / "p", *flags)
    assert (built["num_pairs"], built["rejects"]) == (39, {"empty_text": 1})
    pairs = pq.read_table(tmp_path / "p/pairs/part-000000.parquet")
    assert pairs["image_id"][0].as_py() == str(FIRST_ID + 7)
    write(pa.array([*numbers[:37], 2.5, None, 2.0**60]))
    built = build(cit, tmp_path / "p", *flags, "--max-reject-ratio", "0.2")
    assert (built["num_pairs"], built["rejects"]) == (36, {"bad_image_id": 3, "empty_text": 1})
    write(pa.array([Decimal(n) for n in range(40)]))
    assert build(cit, tmp_path / "p", *flags)["num_images"] == 39
    write(pa.array([n.to_bytes(16, "big") for n in range(40)], pa.binary(16)))
    build(cit, tmp_path / "p", *flags)
    pairs = pq.read_table(tmp_path / "p/pairs/part-000000.parquet")
    assert pairs["image_id"][0].as_py() == f"{1:032x}"
    write(pa.array([n % 2 == 0 for n in range(40)]))
    ended = refused(cit, tmp_path / "none", *flags)
    assert ended.code == 2
    assert "column 'id' is bool" in ended.err
    assert "--image-id ''" in ended.err
    made = [build(cit, tmp_path / "p", *flags, "--image-id", "") for _ in range(2)]
    assert made[0]["fingerprint"] == made[1]["fingerprint"]
    assert made[0]["num_images"] == 39
    assert any("ids are SOURCE/ROW" in note for note in made[0]["notes"])


def test_compressed_tables_end_as_they_should(cit: Cit, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    packed = bz2.compress(written(path, list(enumerate(TEXTS))).read_bytes())
    flags = ("--image-id", "id", "--text", "text")
    for name in ("t.csv.bz2", "t.csv"):
        (tmp_path / name).write_bytes(packed)
        assert build(cit, tmp_path / "p", tmp_path / name, *flags)["num_pairs"] == 40
        (tmp_path / name).write_bytes(packed[: len(packed) // 2])
        ended = refused(cit, tmp_path / "none", tmp_path / name, *flags)
        assert ended.code == 4
        assert str(tmp_path / name) in ended.err
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    (tmp_path / "t.tar").write_bytes(gzip.compress(stream.getvalue()))
    ended = refused(cit, tmp_path / "none", tmp_path / "t.tar")
    assert ended.code == 2
    assert "is compressed with gzip; unpack it first" in ended.err


def test_a_source_of_no_known_format_or_of_several_is_refused(cit: Cit, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    written(folder / "a.csv", [(1, "a bell")])
    pq.write_table(pa.table({"id": [1], "text": ["a bell"]}), folder / "a.parquet")
    (tmp_path / "t.dat").write_text("id,text\n1,a bell\n")
    for path, said in (
        (folder, "1 CSV file (a.csv), 1 Parquet file (a.parquet)"),
        (tmp_path / "t.dat", "its suffix is of no known format"),
    ):
        ended = refused(cit, tmp_path / "none", path, "--text", "text")
        assert ended.code == 2
        assert said in ended.err
        assert f"cit pool build {path} --peek" in ended.err
    flags = ("--image-id", "id", "--text", "text", "--format", "csv")
    for path in (folder, tmp_path / "t.dat"):
        assert build(cit, tmp_path / "p", path, *flags)["num_pairs"] == 1


@pytest.mark.faults("P3")
def test_a_damaged_file_is_left_out_if_one_says_so(cit: Cit, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in "abc":
        rows = [(f"{name}{n}", text) for n, text in enumerate(TEXTS)]
        packed = gzip.compress(written(tmp_path / "t.csv", rows).read_bytes())
        (folder / f"{name}.csv.gz").write_bytes(packed[:-9] if name == "b" else packed)
    flags = (folder, "--image-id", "id", "--text", "text")
    ended = refused(cit, tmp_path / "none", *flags)
    assert ended.code == 4
    assert str(folder / "b.csv.gz") in ended.err
    assert "--on-damaged skip" in ended.err
    ended = cit("pool", "build", *flags, "--on-damaged", "skip", "--out", tmp_path / "p", "--json")
    built = json.loads(ended.out)
    assert (built["num_pairs"], built["rejects"]) == (80, {"damaged_file": 1})
    assert built["num_sources_damaged"] == 1
    assert [source["damaged"] for source in built["sources"]] == [False, True, False]
    (warning,) = built["warnings"]
    assert warning.startswith(f"a source is damaged and left out: {folder / 'b.csv.gz'}")


@pytest.mark.faults("P1")
def test_a_limit_that_is_given_wins_over_a_run_of_bad_rows(cit: Cit, tmp_path: Path) -> None:
    good = [(n, TEXTS[n % 40]) for n in range(1880)]
    path = written(tmp_path / "t.csv", [*good[:600], *[("x", "y", "z")] * 120, *good[600:]])
    flags = (path, "--image-id", "id", "--text", "text")
    built = build(cit, tmp_path / "p", *flags, "--max-reject-ratio", "0.1")
    assert (built["num_pairs"], built["rejects"]) == (1880, {"column_count": 120})
    ended = refused(cit, tmp_path / "none", *flags)
    assert ended.code == 3
    assert "100 malformed rows in a row" in ended.err
