"""Ids, texts and images in Arrow columns, in Parquet and in Arrow files and streams."""

import gzip
import io
import json
import uuid
from decimal import Decimal

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image
from source_rows import read_all

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.read import read_image_bytes
from cit_curate.sources.columns import Columns
from cit_curate.sources.source import find_sources, open_source

COLUMNS = Columns(image_id="id", text=("text",))
LAYOUTS = ["parquet", "pq", "arrow", "arrows", "feather", "ipc"]


def write(folder, table, layout="parquet"):
    path = folder / f"t.{layout}"
    if layout in ("parquet", "pq"):
        pq.write_table(table, path)
    elif layout == "feather":
        pyarrow.feather.write_feather(table, path, compression="lz4")
    else:
        new = pa.ipc.new_stream if layout == "arrows" else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


def read(path, columns=COLUMNS):
    (source,) = find_sources([path])
    return read_all(open_source(source, columns), source.image_root, source.name)


def read_ids(folder, ids, layout="parquet"):
    table = pa.table({"id": ids, "text": [f"text {row}" for row in range(len(ids))]})
    found = read(write(folder, table, layout))
    return [p["image_id"] for p in found.pairs], found


U = [uuid.UUID(int=number * 7919 << 64) for number in (1, 2)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([3, -4], pa.int8()), ["3", "-4"]),
        (pa.array([2**64 - 1, 5], pa.uint64()), ["18446744073709551615", "5"]),
        (pa.array([1e12, -7.0, -0.0]), ["1000000000000", "-7", "0"]),
        (pa.array([2.0**24, 3.0], pa.float32()), ["16777216", "3"]),
        (pa.array([2048.0, 3.0], pa.float16()), ["2048", "3"]),
        (pa.array([Decimal("5.00"), Decimal("-12.00")]), ["5", "-12"]),
        (pa.array([Decimal(10**37 + 1)], pa.decimal128(38, 0)), [str(10**37 + 1)]),
        (pa.array([Decimal("7.0")], pa.decimal256(50, 1)), ["7"]),
        (pa.array([u.bytes for u in U], pa.binary(16)), [u.hex for u in U]),
        (pa.array([u.bytes for u in U], pa.uuid()), [u.hex for u in U]),
        (pa.array([b"a1", "é".encode()]), ["a1", "é"]),
        (pa.array(["x", "y", "x2"]).dictionary_encode(), ["x", "y", "x2"]),
        (pa.array([4.0, 5.0]).dictionary_encode(), ["4", "5"]),
        (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
    ],
)
def test_an_id_is_what_its_type_says_exactly(tmp_path, ids, expected, layout):
    if layout in ("parquet", "pq") and pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    found, read = read_ids(tmp_path, ids, layout)
    assert found == expected
    assert read.rejects == []


@pytest.mark.faults("P5")
@pytest.mark.parametrize(
    ("ids", "details"),
    [
        (pa.array([2.5, None, 1.0]), ["id 2.5 is no whole number", "is empty"]),
        (pa.array([float("nan"), float("inf")]), ["nan is no whole", "inf is no whole"]),
        (pa.array([2.0**60, 2.0**53, -(2.0**60)]), ["beyond 2**53, where a float of 64 b"] * 2),
        (pa.array([2.0**25], pa.float32()), ["beyond 2**24"]),
        (pa.array([Decimal("2.50"), None, Decimal("3.00")]), ["2.50 is no whole", "is empty"]),
        (pa.array([b"\xff\xfe", b""]), ["not UTF-8", "is empty"]),
        (pa.array([None, 4], pa.int64()), ["is empty"]),
        (pa.nulls(2), ["is empty"] * 2),
    ],
)
def test_an_id_that_is_not_exact_is_rejected_by_its_row(tmp_path, ids, details):
    found, read = read_ids(tmp_path, ids)
    assert [r.reason for r in read.rejects] == ["bad_image_id"] * len(details)
    for reject, detail in zip(read.rejects, details, strict=True):
        assert detail in reject.detail
    assert len(found) + len(details) == read.num_records == len(ids)
    assert [p["__row__"] for p in read.pairs] == [
        row for row in range(1, len(ids) + 1) if row not in {r.row for r in read.rejects}
    ]


@pytest.mark.faults("P6")
@pytest.mark.parametrize(
    "ids",
    [
        pa.array([True]),
        pa.array([0], pa.date32()),
        pa.array([0], pa.timestamp("us", "UTC")),
        pa.array([0], pa.time64("us")),
        pa.array([0], pa.duration("s")),
        pa.array([[1]]),
        pa.array([{"a": 1}]),
        pa.array([b"123"], pa.binary(3)),
    ],
)
def test_an_id_of_another_type_is_refused_with_a_way_out(tmp_path, ids):
    path = write(tmp_path, pa.table({"id": ids, "text": ["a"]}))
    with pytest.raises(ConfigError) as error:
        read(path)
    assert f"column 'id' is {str(ids.type)[:4]}" in str(error.value)
    assert "but ids must be text or whole numbers" in str(error.value)
    assert "--image-id ''" in str(error.value)
    made = read(path, Columns(image_id="", text=("text",)))
    assert made.values("image_id") == [("t.parquet/00000000",)]


@pytest.mark.faults("P2", "P6")
def test_binary_is_text_and_numbers_are_not(tmp_path):
    table = pa.table(
        {
            "id": [1, 2, 3],
            "text": pa.array([b"a jar", b"caf\xe9", None], pa.large_binary()),
            "number": [1.0, 2.0, 3.0],
            "when": pa.array([0, 1, 2], pa.date32()),
        }
    )
    found = read(write(tmp_path, table))
    assert found.values("caption", "text_fixed") == [("a jar", False), ("caf\ufffd", True)]
    assert found.reasons == [(3, "empty_text")]
    for name in ("number", "when"):
        with pytest.raises(ConfigError, match=rf"'{name}' is .*must hold text.*; cast it to text"):
            read(write(tmp_path, table), Columns(image_id="id", text=(name,)))


def test_without_a_column_image_id_ids_are_made_in_every_layout(tmp_path):
    table = pa.table({"text": ["a", "b", "c"]})
    for layout in LAYOUTS:
        found = read(write(tmp_path, table, layout), Columns(text=("text",)))
        assert [p["image_id"] for p in found.pairs] == [f"t.{layout}/{n:08d}" for n in range(3)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_class_label_is_its_name_where_a_text_is_wanted(tmp_path, layout):
    features = datasets.Features(
        {"id": datasets.Value("int32"), "label": datasets.ClassLabel(names=["a jug", "a lid"])}
    )
    labels = datasets.Dataset.from_dict({"id": [5, 6, 7, 8], "label": [1, 0, None, -1]}, features)
    table = labels.data.table
    path = write(tmp_path, table, layout)
    found = read(path, Columns(image_id="id", text=("label",), extra=("label",)))
    assert found.values("image_id", "text_key", "caption", "label") == [
        ("5", "label", "a lid", 1),
        ("6", "label", "a jug", 0),
    ]
    assert found.reasons == [(3, "empty_text"), (4, "empty_text")]
    found = read(path, Columns(image_id="id", text_key="label", caption="label"))
    assert found.values("text_key") == [("a-lid",), ("a-jug",)]
    broken = table.set_column(1, table.schema.field("label"), pa.array([1, 0, 2, 9], pa.int64()))
    found = read(write(tmp_path, broken, layout), Columns(image_id="id", text=("label",)))
    assert found.reasons == [(3, "bad_row"), (4, "bad_row")]
    assert found.rejects[0].detail == "label 2 has no name; there are 2 names"


def test_metadata_that_is_no_json_changes_nothing(tmp_path):
    for metadata in (b"", b"{", b"[]", b'{"info": {"features": 5}}', b'{"info": null}'):
        table = pa.table({"id": [1], "text": ["a"]}).replace_schema_metadata(
            {b"huggingface": metadata}
        )
        assert len(read(write(tmp_path, table)).pairs) == 1


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_in_the_cells_are_read_where_they_lie(tmp_path, layout):
    images = [png("red"), png("blue"), png("green")]
    cells = [{"bytes": image, "path": None} for image in images]
    table = pa.table(
        {
            "id": [1, 2, 3],
            "text": ["a", "b", "c"],
            "photo": pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "plain": images,
        }
    )
    path = write(tmp_path, table, layout)
    for columns in (COLUMNS, Columns(image_id="id", image="plain", text=("text",))):
        found = read(path, columns)
        assert [read_image_bytes(tmp_path, p["image_uri"]) for p in found.pairs] == images
    (source,) = find_sources([path])
    assert open_source(source, COLUMNS).notes == (
        "the images are those in the column 'photo' (--image says which)",
    )


@pytest.mark.parametrize(
    "images",
    [
        pa.array([["a.jpg", "b.jpg"]]),
        pa.array([[b"1"]]),
        pa.array([[{"bytes": b"1", "path": "x"}]]),
        pa.array([["a.jpg"]], pa.large_list(pa.string())),
        pa.array([["a.jpg"]], pa.list_(pa.string(), 1)),
    ],
)
def test_several_images_in_a_row_are_said_to_be_unsupported(tmp_path, images):
    path = write(tmp_path, pa.table({"id": [1], "text": ["a"], "images": images}))
    with pytest.raises(
        ConfigError, match=r"'images' holds several images a row, which is not supp"
    ):
        read(path, Columns(image_id="id", image="images", text=("text",)))


@pytest.mark.faults("P3")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_anywhere_is_damaged(tmp_path, layout):
    table = pa.table({"id": list(range(200)), "text": [f"text {row}" for row in range(200)]})
    content = write(tmp_path, table, layout).read_bytes()
    path = tmp_path / f"cut.{layout}"
    for size in range(0, len(content), max(len(content) // 40, 1)):
        path.unlink(missing_ok=True)
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"cut\.\w+ \(.*is damaged or still being written"):
            read(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_that_is_compressed_as_a_whole_is_refused_by_name(tmp_path, layout):
    path = write(tmp_path, pa.table({"id": [1], "text": ["a"]}), layout)
    packed = tmp_path / f"t.{layout}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ConfigError, match="is compressed with gzip; unpack it first"):
        read(packed)


def test_feather_of_the_first_version_is_refused_by_name(tmp_path):
    path = tmp_path / "t.feather"
    path.write_bytes(b"FEA1" + b"\0" * 64 + b"FEA1")
    with pytest.raises(ConfigError, match="Feather file of version 1"):
        read(path)


def downloads():
    """What img2dataset writes with `--output_format parquet`, three of five downloads failed."""
    statuses = ["success", "failed_to_download", "success", "failed_to_resize", "Oh no!"]
    errors = [None, "HTTP Error 404: Not Found", None, "Image decoding error", None]
    return pa.table(
        {
            "key": [f"{row:09d}" for row in range(5)],
            "jpg": [png("red"), None, png("blue"), None, None],
            "txt": ["a red card", None, "a blue card", None, None],
            "url": [f"https://pictures.example/{row}" for row in range(5)],
            "caption": ["a red card", "a fan", "a blue card", "a pot", "a pan"],
            "status": statuses,
            "error_message": errors,
            "exif": [None] * 5,
        }
    )


def test_downloads_of_img2dataset_that_failed_are_rejected_with_their_reason(tmp_path):
    path = write(tmp_path, downloads())
    found = read(path, Columns())
    assert found.values("image_id", "text_key", "caption") == [
        ("000000000", "txt", "a red card"),
        ("000000002", "txt", "a blue card"),
    ]
    images = [read_image_bytes(tmp_path, p["image_uri"]) for p in found.pairs]
    assert images == [png("red"), png("blue")]
    assert [(r.row, r.reason, r.detail) for r in found.rejects] == [
        (
            2,
            "failed_to_download",
            "img2dataset says failed_to_download: HTTP Error 404: Not Found",
        ),
        (4, "failed_to_resize", "img2dataset says failed_to_resize: Image decoding error"),
        (5, "failed_to_download", "img2dataset says Oh no!"),
    ]
    found = read(path, Columns(image_id="url", image="url", text=("caption",), extra=("key",)))
    assert found.values("image_id", "key")[1] == ("https://pictures.example/2", "000000002")


def test_a_table_of_labels_of_a_saved_dataset_has_the_same_names(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}]}))
    features = datasets.Features({"label": datasets.ClassLabel(names=["a jug", "a lid"])})
    table = datasets.Dataset.from_dict({"label": [1, 0]}, features).data.table
    with pa.ipc.new_stream(tmp_path / "0.arrow", table.schema) as writer:
        writer.write_table(table)
    found = read(tmp_path, Columns(text=("label",)))
    assert [p["caption"] for p in found.pairs] == ["a lid", "a jug"]
