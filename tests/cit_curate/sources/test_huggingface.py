"""Hugging Face dataset folders as sources; made by the `datasets` library itself."""

import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.images.read import ImageRejected, read_image_bytes
from cit_curate.sources.columns import Columns
from cit_curate.sources.huggingface import open_huggingface
from cit_curate.sources.pairs import pairs_of
from cit_curate.sources.source import find_sources, open_source

CAPTION = Columns(text=("caption",))
COLOURS = ("red", "green", "blue", "black", "white")


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stream, "PNG")
    return stream.getvalue()


def dataset(colours=COLOURS):
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "caption": datasets.Value("string"),
            "number": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_dict(
        {
            "photo": [{"bytes": png(colour), "path": f"{colour}.png"} for colour in colours],
            "caption": [f"a {colour} thing" for colour in colours],
            "number": list(range(len(colours))),
        },
        features=features,
    )


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def read(reader, root, name="d"):
    pairs, rejects = [], []
    for rows in reader.read():
        raw = pairs_of(rows, reader.columns, image_root=root, source=name)
        pairs += raw.pairs.to_pylist()
        rejects += raw.rejects
    return pairs, rejects


def test_a_sequence_of_texts_is_several_texts_of_an_image(tmp_path):
    captions = [["a red hen", "a bird"], [], ["a blue jug"]]
    features = {"captions": datasets.Sequence(datasets.Value("string"))}
    made = datasets.Dataset.from_dict({"captions": captions}, datasets.Features(features))
    made.save_to_disk(tmp_path / "d")
    for columns, key in (
        (Columns(text=("captions",)), "captions"),
        (Columns(caption="captions"), "caption"),
    ):
        pairs, rejects = read(open_huggingface(tmp_path / "d", columns), tmp_path)
        assert [(p["image_id"], p["text_key"], p["caption"]) for p in pairs] == [
            ("d/00000000", key, "a red hen"),
            ("d/00000000", key, "a bird"),
            ("d/00000002", key, "a blue jug"),
        ]
        assert [reject.reason for reject in rejects] == ["empty_text"]


def read_all(path, columns, image_root=None):
    found = []
    for source in find_sources([path], image_root=image_root):
        pairs, rejects = read(open_source(source, columns), source.image_root, source.name)
        assert rejects == []
        found += [
            (p["image_id"], p["caption"], read_image_bytes(source.image_root, p["image_uri"]))
            for p in pairs
        ]
    return found


def test_images_in_a_parquet_file_that_a_link_names_by_itself_are_read(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "data").mkdir()
    dataset().to_parquet(tmp_path / "blobs" / "deadbeef")
    (tmp_path / "data" / "0.parquet").symlink_to("../blobs/deadbeef")
    columns = Columns(image_id="caption", image="photo", text=("caption",))
    found = read_all(tmp_path / "data" / "0.parquet", columns)
    assert [image for _, _, image in found] == [png(colour) for colour in COLOURS]


def test_a_saved_dataset_is_read_with_the_images_inside_it(tmp_path):
    dataset().save_to_disk(tmp_path / "saved", num_shards=2)
    expected = [
        (f"saved/{row:08d}", f"a {colour} thing", png(colour)) for row, colour in enumerate(COLOURS)
    ]
    assert read_all(tmp_path / "saved", CAPTION) == expected
    assert read_all(tmp_path / "saved", CAPTION, image_root=tmp_path) == expected


def test_each_split_is_a_source(tmp_path):
    splits = {"train": dataset(), "test": dataset(COLOURS[:2])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    assert [source.name for source in find_sources([tmp_path / "d"])] == ["d/train", "d/test"]
    assert [image_id for image_id, _, _ in read_all(tmp_path / "d", CAPTION)] == [
        *(f"d/train/{row:08d}" for row in range(5)),
        *(f"d/test/{row:08d}" for row in range(2)),
    ]


def test_columns_are_chosen_as_in_a_table(tmp_path):
    dataset().save_to_disk(tmp_path / "d")
    columns = Columns(image_id="number", image="photo", text=("caption",), extra=("number",))
    pairs, _ = read(open_huggingface(tmp_path / "d", columns), tmp_path / "d")
    assert [(p["image_id"], p["text_key"], p["number"]) for p in pairs] == [
        (str(row), "caption", row) for row in range(5)
    ]
    for columns, problem in (
        (Columns(text=("captoin",)), "no column 'captoin'; it has .*did you mean 'caption'"),
        (Columns(), r"say where the texts are.*its columns are photo, caption, number"),
        (Columns(text=("number",)), "column 'number' is int64, but must hold text"),
        (Columns(text=("photo",)), "column 'photo' is struct.*must hold text"),
        (Columns(image_id="id", text=("caption",)), "no column 'id'"),
    ):
        with pytest.raises(ConfigError, match=problem):
            open_huggingface(tmp_path / "d", columns)


def test_filtered_and_shuffled_datasets_are_read_in_their_order(tmp_path):
    chosen = dataset().select([3, 0, 4])
    chosen.save_to_disk(tmp_path / "d")
    captions = [caption for _, caption, _ in read_all(tmp_path / "d", CAPTION)]
    assert captions == chosen["caption"][:] == ["a black thing", "a red thing", "a white thing"]


def test_a_snapshot_of_parquet_files_is_read(tmp_path):
    (tmp_path / "d/data").mkdir(parents=True)
    (tmp_path / "d/README.md").write_text("card")
    dataset(COLOURS[:3]).to_parquet(tmp_path / "d/data/train-00000-of-00002.parquet")
    dataset(COLOURS[3:]).to_parquet(tmp_path / "d/data/train-00001-of-00002.parquet")
    found = read_all(tmp_path / "d", CAPTION)
    assert [image for _, _, image in found] == [png(colour) for colour in COLOURS]
    assert found[3][0] == "d/data/train-00001-of-00002.parquet/00000000"
    table = Columns(image_id="number", image="photo", text=("caption",))
    assert read_all(tmp_path / "d/data/train-00001-of-00002.parquet", table)[0] == (
        "0",
        "a black thing",
        png("black"),
    )


@pytest.mark.parametrize("layout", ["arrow", "parquet"])
def test_an_image_lies_in_its_cell_or_at_its_path_or_nowhere(tmp_path, layout):
    (tmp_path / "out.png").write_bytes(png("green"))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": png("red"), "path": None}, {"bytes": None, "path": "out.png"}, None]
    table = pa.table({"image": pa.array(cells, kind), "caption": ["in", "out", "none"]})
    if layout == "arrow":
        path = tmp_path
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}]}))
        with pa.ipc.new_stream(path / "0.arrow", table.schema) as writer:
            writer.write_table(table)
    else:
        path = tmp_path / "0.parquet"
        pq.write_table(table, path)
    pairs, rejects = read(open_huggingface(path, CAPTION), tmp_path)
    assert rejects == []
    assert [p["image_uri"] for p in pairs] == [
        f"{layout}://0.{layout}?column=image&row=0",
        "out.png",
        "",
    ]
    images = [read_image_bytes(tmp_path, p["image_uri"]) for p in pairs[:2]]
    assert images == [png("red"), png("green")]


def test_image_bytes_are_not_read_while_building(tmp_path):
    table = pa.table({"image": [b"x" * 1000] * 100, "caption": ["text"] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(0)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ImageRejected, match="damaged_archive"):
        read_image_bytes(tmp_path, "parquet://a.parquet?column=image&row=0")
    columns = Columns(image="image", text=("caption",))
    pairs, _ = read(open_huggingface(tmp_path / "a.parquet", columns), tmp_path)
    assert [p["image_uri"] for p in pairs] == [
        f"parquet://a.parquet?column=image&row={row}" for row in range(100)
    ]


@pytest.mark.faults("P3")
def test_an_arrow_file_cut_anywhere_is_damaged(tmp_path):
    dataset().save_to_disk(tmp_path / "d")
    path = tmp_path / "d/data-00000-of-00001.arrow"
    content = path.read_bytes()
    for size in range(0, len(content), max(len(content) // 60, 1)):
        path.unlink()
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"\.arrow \(.*is damaged or still being written"):
            read(open_huggingface(tmp_path / "d", CAPTION), tmp_path)


def test_flipped_bytes_in_an_arrow_file_give_rows_or_damage(tmp_path):
    dataset().save_to_disk(tmp_path / "d")
    path = tmp_path / "d/data-00000-of-00001.arrow"
    content = path.read_bytes()
    damaged = 0
    for place in range(0, len(content) - 8, 23):
        flipped = bytearray(content)
        flipped[place] ^= 0xFF
        path.unlink()
        path.write_bytes(flipped)
        try:
            read(open_huggingface(tmp_path / "d", CAPTION), tmp_path)
        except (DamagedError, ConfigError):
            damaged += 1
    assert damaged > 5


@pytest.mark.parametrize("name", ["../x.arrow", "/etc/x.arrow", "a/../x.arrow", "..", "", "a\0b"])
def test_a_dataset_names_only_files_in_its_own_folder(tmp_path, name):
    (tmp_path / "x.arrow").write_bytes(b"")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DamagedError):
        open_huggingface(tmp_path / "d", CAPTION)
    (tmp_path / "e").mkdir()
    (tmp_path / "e/dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(DamagedError):
        find_sources([tmp_path / "e"])


def test_what_is_missing_is_named(tmp_path):
    dataset().save_to_disk(tmp_path / "d")
    (tmp_path / "d/data-00000-of-00001.arrow").unlink()
    with pytest.raises(DamagedError, match=r"\.arrow is missing; state\.json names it"):
        open_huggingface(tmp_path / "d", CAPTION)
    (tmp_path / "d/state.json").write_text("{cut")
    with pytest.raises(DamagedError, match=r"state\.json is damaged"):
        open_huggingface(tmp_path / "d", CAPTION)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no Hugging Face dataset"):
        find_sources([tmp_path / "empty"], format="huggingface")


def test_a_snapshot_in_the_cache_of_the_hub_consists_of_links(tmp_path):
    data = tmp_path / "snapshots" / "abc" / "data"
    data.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    dataset().to_parquet(tmp_path / "blobs" / "0123")
    (data / "train.parquet").symlink_to(tmp_path / "blobs" / "0123")
    found = read_all(data.parent, CAPTION)
    assert [image for _, _, image in found] == [png(colour) for colour in COLOURS]


@pytest.mark.parametrize("saved", [True, False])
def test_several_images_a_row_are_said_to_be_unsupported_by_name(tmp_path, saved):
    images = [[{"bytes": png("red"), "path": None}] * 2] * 3
    made = datasets.Dataset.from_dict(
        {"views": images, "caption": ["a", "b", "c"]},
        features=datasets.Features(
            {"views": datasets.Sequence(datasets.Image()), "caption": datasets.Value("string")}
        ),
    )
    if saved:
        made.save_to_disk(tmp_path / "d")
    else:
        made.to_parquet(tmp_path / "d" / "data" / "0.parquet")
    (source,) = find_sources([tmp_path / "d"])
    reader = open_source(source, CAPTION)
    assert any("'views' holds several images a row" in note for note in reader.notes)
    assert len(read(reader, tmp_path)[0]) == 3
    with pytest.raises(ConfigError, match="'views' holds several images a row, which is not"):
        open_source(source, Columns(text=("caption",), image="views"))
