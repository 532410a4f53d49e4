"""Parquet files and image folders as sources."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.sources.columns import Columns
from cit_curate.sources.folders.folder import open_folder
from cit_curate.sources.pairs import pairs_of
from cit_curate.sources.parquet import open_parquet
from cit_curate.sources.rows import ROW
from cit_curate.sources.source import find_sources

COLUMNS = Columns(text=("title",))


def read(reader, root):
    pairs, rejects = [], []
    for rows in reader.read():
        raw = pairs_of(rows, reader.columns, image_root=root)
        pairs += raw.pairs.to_pylist()
        rejects += raw.rejects
    return pairs, rejects


def test_parquet_numbers_become_ids_and_nulls_are_empty(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "image_id": pa.array([7, 8, None], pa.int64()),
            "title": pa.array(["x", None, "y"]).dictionary_encode(),
            "score": pa.array([0.5, 1.0, 2.0], pa.float32()),
        }
    )
    pq.write_table(table, path)
    reader = open_parquet(path, Columns(text=("title",), extra=("score",)))
    pairs, rejects = read(reader, tmp_path)
    assert [(p["image_id"], p[ROW], p["score"]) for p in pairs] == [("7", 1, 0.5)]
    assert [(r.row, r.reason) for r in rejects] == [(2, "empty_text"), (3, "bad_image_id")]


@pytest.mark.faults("P2")
def test_parquet_text_that_is_not_utf8_is_replaced_and_flagged(tmp_path):
    bad = pa.array([b"caf\xe9", b"ok"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image_id": ["1", "2"], "title": bad}), tmp_path / "a.parquet")
    pairs, _ = read(open_parquet(tmp_path / "a.parquet", COLUMNS), tmp_path)
    assert [(p["caption"], p["text_fixed"]) for p in pairs] == [("caf\ufffd", True), ("ok", False)]


@pytest.mark.faults("P3")
def test_parquet_cut_anywhere_is_called_damaged(tmp_path):
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"image_id": ["1"] * 50, "title": ["x"] * 50}), whole)
    content = whole.read_bytes()
    path = tmp_path / "cut.parquet"
    for size in range(0, len(content), max(len(content) // 40, 1)):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"cut\.parquet.*damaged or still being written"):
            open_parquet(path, COLUMNS)


@pytest.mark.faults("P6")
def test_parquet_column_of_a_wrong_type_is_named(tmp_path):
    pq.write_table(pa.table({"image_id": [True], "title": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="column 'image_id' is bool"):
        open_parquet(tmp_path / "a.parquet", COLUMNS)


LISTS = [["a hen", None, "a fork"], None, [], ["a moon"]]
TEXTS = [("1", "a hen"), ("1", "a fork"), ("4", "a moon")]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ],
    ids=str,
)
def test_parquet_lists_are_several_texts(tmp_path, kind):
    if pa.types.is_dictionary(kind.value_type):
        values = pa.array(["a hen", None, "a fork", "a moon"]).dictionary_encode()
        mask = pa.array([False, True, False, False])
        lists = pa.ListArray.from_arrays(pa.array([0, 3, 3, 3, 4], pa.int32()), values, mask=mask)
    else:
        lists = pa.array(LISTS, kind)
    pq.write_table(pa.table({"image_id": list("1234"), "title": lists}), tmp_path / "a.parquet")
    pairs, rejects = read(open_parquet(tmp_path / "a.parquet", COLUMNS), tmp_path)
    assert [(p["image_id"], p["caption"]) for p in pairs] == TEXTS
    assert {p["text_key"] for p in pairs} == {"title"}
    assert [(r.row, r.reason) for r in rejects] == [(2, "empty_text"), (3, "empty_text")]


def test_parquet_lists_of_one_length_or_of_nothing_are_read(tmp_path):
    lists = pa.array([["a hen", None], None, ["x", "y"]], pa.list_(pa.string(), 2))
    nothing = pa.array([[None], None, []], pa.list_(pa.null()))
    table = pa.table({"image_id": list("123"), "title": lists, "alt": nothing})
    pq.write_table(table, tmp_path / "a.parquet")
    reader = open_parquet(tmp_path / "a.parquet", Columns(text=("title", "alt")))
    pairs, _ = read(reader, tmp_path)
    assert [p["caption"] for p in pairs] == ["a hen", "x", "y"]


@pytest.mark.parametrize(
    ("lists", "kind"),
    [([[1, 2]], r"list<element: int64>"), ([[["a"]]], r"list<element: list<element: string>>")],
)
def test_parquet_lists_of_other_things_than_text_are_named(tmp_path, lists, kind):
    table = pa.table({"image_id": pa.array([["x"]]), "title": lists})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="column 'image_id' is list"):
        open_parquet(tmp_path / "a.parquet", COLUMNS)
    columns = Columns(image_id=None, text=("title",))
    with pytest.raises(ConfigError, match=f"'title' is {kind}, but must hold text or lists"):
        open_parquet(tmp_path / "a.parquet", columns)


def test_folder_pairs_images_with_their_text(tmp_path):
    (tmp_path / "birds").mkdir()
    for name in ("birds/b.jpg", "a.PNG", "alone.webp", ".hidden.jpg", "page.svg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "birds/b.txt").write_bytes(b"\xef\xbb\xbfa blue\nbird\r\n")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "README.txt").write_text("not a caption")
    pairs, rejects = read(open_folder(tmp_path), tmp_path)
    assert [(p["image_id"], p["text_key"], p["caption"], p["image_uri"]) for p in pairs] == [
        ("a", "caption", "caf\ufffd", "a.PNG"),
        ("birds/b", "caption", "a blue\nbird", "birds/b.jpg"),
    ]
    assert [r.reason for r in rejects] == [
        "image_without_text",
        "format_not_allowed",
        "text_without_image",
    ]


def test_sources_are_found_by_suffix_and_named_once(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for name in ("a.csv", "y/a.csv", "x/2.parquet", "x/1.parquet"):
        (tmp_path / name).write_bytes(b"")
    found = find_sources([tmp_path / "a.csv", tmp_path / "y/a.csv", tmp_path / "x"])
    assert [(s.name, s.format) for s in found] == [
        ("a.csv", "csv"),
        ("a.csv#2", "csv"),
        ("x/1.parquet", "parquet"),
        ("x/2.parquet", "parquet"),
    ]
    assert found[1].image_root == (tmp_path / "y").resolve()
    for wrong in ([], [tmp_path / "none.csv"]):
        with pytest.raises(ConfigError):
            find_sources(wrong)
    (tmp_path / "a.dat").write_bytes(b"")
    with pytest.raises(ConfigError, match="suffix"):
        find_sources([tmp_path / "a.dat"])
