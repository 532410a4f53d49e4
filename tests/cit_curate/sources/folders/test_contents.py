"""Folders as sources: of tables at any depth, of one format, with the columns of their folders."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_rows import read_all

from cit_curate.errors import ConfigError
from cit_curate.sources.columns import Columns
from cit_curate.sources.folders.contents import format_of_name, partitions_of
from cit_curate.sources.source import find_sources, open_source

COLUMNS = Columns(image_id="id", text=("text",))


def put(path, number):
    """A table with one row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"id": f"{number}", "text": f"a rope, {number}"}
    kind = format_of_name(path.name)
    if kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, row, delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerow(row)
    elif kind in ("json", "jsonl"):
        path.write_text(json.dumps([row] if kind == "json" else row))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        table = pa.Table.from_pylist([row])
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def ids(folder, columns=COLUMNS, **options):
    found = []
    for source in find_sources([folder], **options):
        read = read_all(open_source(source, columns), source.image_root, source.name)
        found += [p["image_id"] for p in read.pairs]
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("A.CSV.GZ", "csv"),
        ("a.tsv.bz2", "tsv"),
        ("a.tab.gz", "tsv"),
        ("a.Json.XZ", "json"),
        ("a.ndjson.zst", "jsonl"),
        ("a.pq", "parquet"),
        ("part-0.snappy.parquet", "parquet"),
        ("a.arrow", "arrow"),
        ("a.feather", "arrow"),
        ("a.ipc", "arrow"),
        ("a.tar", "webdataset"),
        ("a.tar.gz", "webdataset"),
        ("a.TGZ", "webdataset"),
        ("a.txt.gz", None),
        ("a.gz", None),
        ("csv", None),
        ("a.csv.zip", None),
    ],
)
def test_a_suffix_tells_the_format(name, kind):
    assert format_of_name(name) == kind


@pytest.mark.parametrize(
    "suffix", ["csv", "tsv", "json", "jsonl", "parquet", "pq", "arrow", "feather", "ipc"]
)
def test_a_folder_of_tables_is_read_at_any_depth_in_order_of_name(tmp_path, suffix):
    folder = tmp_path / "tables"
    for number, name in enumerate(["a/1", "a/b/c/2", "b/1", "c"]):
        put(folder / f"{name}.{suffix}", number)
    put(folder / f".hidden/x.{suffix}", 8)
    put(folder / f"_delta_log.{suffix}", 9)
    (folder / "README.md").write_text("a card")
    assert ids(folder) == ["0", "1", "2", "3"]
    found = find_sources([folder])
    assert [source.name for source in found] == [
        f"tables/{name}.{suffix}" for name in ("a/1", "a/b/c/2", "b/1", "c")
    ]
    notes = [note for source in found for note in source.notes]
    assert notes == [f"of {folder}, not read: 2 other files (README.md, _delta_log.{suffix})"]


def test_links_to_files_are_read_and_those_to_folders_are_said(tmp_path):
    put(tmp_path / "store/1.csv", 1)
    put(tmp_path / "source/2.csv", 2)
    (tmp_path / "source/1.csv").symlink_to(tmp_path / "store/1.csv")
    (tmp_path / "source/all").symlink_to(tmp_path / "store")
    assert ids(tmp_path / "source") == ["1", "2"]
    (note,) = find_sources([tmp_path / "source"])[0].notes
    assert note.endswith("not read: 1 link to folders")


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (["a.csv", "b.parquet"], ["1 CSV file (a.csv)", "1 Parquet file (b.parquet)"]),
        (["a.csv", "b.tsv"], ["1 CSV file", "1 TSV file", "--format csv or tsv"]),
        (["x/a.jsonl", "b.json", "c.json"], ["1 JSON lines file", "2 JSON files (b.json, c.json)"]),
        (["a.arrow", "b.parquet"], ["1 Arrow file", "1 Parquet file"]),
        (["a.tar", "b.csv"], ["1 tar file", "1 CSV file"]),
        (["a.tar", "b.parquet"], ["1 tar file (a.tar)", "1 Parquet file (b.parquet)"]),
        (["p/1.jpg", "p/2.jpg", "t.csv"], ["2 images", "t.csv --image COLUMN --image-root"]),
        (["p/1.jpg", "p/1.txt", "t.jsonl"], ["1 image", "--format jsonl or folder"]),
        (["p/1.jpg", "captions.json"], ["1 image", "1 JSON file (captions.json)"]),
        (["1.jpg", "a.tar"], ["1 image", "1 tar file", "--format webdataset or folder"]),
    ],
)
def test_a_folder_of_several_formats_is_refused_by_saying_what_it_holds(tmp_path, names, held):
    touch(tmp_path, *names)
    with pytest.raises(ConfigError) as error:
        find_sources([tmp_path])
    for words in (*held, f"{tmp_path} holds", "name the files to read", "--peek"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a.tar", "a.parquet", "a_stats.json", "classes.txt", "sizes.json"], "webdataset"),
        (["a.tar", "rejects.parquet"], "webdataset"),
        (["p/1.jpg", "p/1.txt", "p/1.json", "info.json"], "folder"),
        (["p/1.jpg", "p/1.json"], "folder"),
        (["p/1.jpg", "p/metadata.jsonl", "q/metadata.csv"], "folder"),
        (["1.parquet", "1_stats.json", "dataset_infos.json", "README.md"], "parquet"),
        (["1.jpg", "pool/pool.json", "pool/pairs/1.parquet"], "folder"),
        ([], "folder"),
    ],
)
def test_what_belongs_to_the_sources_does_not_mix_formats(tmp_path, names, kind):
    touch(tmp_path, *names)
    if kind == "folder":
        assert [(s.format, s.path) for s in find_sources([tmp_path])] == [("folder", tmp_path)]
    else:
        assert {source.format for source in find_sources([tmp_path])} == {kind}


def test_a_format_that_is_given_reads_its_files_alone(tmp_path):
    folder = tmp_path / "tables"
    for number, name in enumerate(["a.csv", "b/c.tsv", "d.jsonl", "e.json", "f.pq", "g.ipc"]):
        put(folder / name, number)
    for number, kind in enumerate(["csv", "tsv", "jsonl", "json", "parquet", "arrow"]):
        assert ids(folder, format=kind) == [str(number)]
    (source,) = find_sources([folder], format="csv")
    assert source.notes == (f"of {folder}, not read: 5 other files (g.ipc, e.json, d.jsonl, …)",)
    with pytest.raises(ConfigError, match="holds no tar file"):
        find_sources([folder], format="webdataset")
    with pytest.raises(ConfigError, match="is a file, which --format folder does not read"):
        find_sources([folder / "a.csv"], format="folder")


def test_a_name_that_tells_no_format_says_how_to_say_it(tmp_path):
    touch(tmp_path, "captions.dat", "captions.zip")
    with pytest.raises(ConfigError, match=r"--format csv, tsv, json, .* or huggingface; .*--peek"):
        find_sources([tmp_path / "captions.dat"])
    with pytest.raises(ConfigError, match=r"captions\.zip is a zip; unpack it"):
        find_sources([tmp_path / "captions.zip"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet", "arrow"])
def test_the_folders_of_hive_are_columns(tmp_path, suffix):
    folder = tmp_path / "tables"
    for number, lang in enumerate(["en", "pt%2DBR", "__HIVE_DEFAULT_PARTITION__"]):
        put(folder / f"lang={lang}" / "day=07" / f"0.{suffix}", number)
    columns = Columns(image_id="id", text=("text",), extra=("day", "lang", "text"))
    found = []
    for source in find_sources([folder]):
        reader = open_source(source, columns)
        assert list(reader.extra_types) == ["day", "lang", "text"]
        found += read_all(reader, source.image_root).values("image_id", "lang", "day", "text")
    assert found == [
        ("2", None, "07", "a rope, 2"),
        ("0", "en", "07", "a rope, 0"),
        ("1", "pt-BR", "07", "a rope, 1"),
    ]
    assert ids(folder) == ["2", "0", "1"]
    with pytest.raises(ConfigError, match="no column 'Lang'"):
        ids(folder, Columns(image_id="id", text=("text",), extra=("Lang",)))


def test_the_named_folder_may_be_a_partition_itself(tmp_path):
    folder = tmp_path / "a=b" / "lang=en"
    assert partitions_of(folder, folder / "x=1=2" / "t.csv") == (("lang", "en"), ("x", "1=2"))


def test_of_the_folders_of_img2dataset_the_failed_downloads_are_rejected(tmp_path):
    touch(tmp_path, "00000/000000001.jpg", "00000/000000003.jpg", "00000_stats.json")
    for key in (1, 3):
        (tmp_path / f"00000/{key:09d}.txt").write_text(f"a mat, {key}")
        (tmp_path / f"00000/{key:09d}.json").write_text(json.dumps({"status": "success"}))
    table = pa.table(
        {
            "key": [f"{key:09d}" for key in range(4)],
            "status": ["failed_to_download", "success", "failed_to_resize", "success"],
            "error_message": ["<urlopen error>", None, None, None],
        }
    )
    pq.write_table(table, tmp_path / "00000.parquet")
    (source,) = find_sources([tmp_path])
    reader = open_source(source, Columns())
    found = read_all(reader, tmp_path)
    assert found.values("image_id", "caption") == [
        ("00000/000000001", "a mat, 1"),
        ("00000/000000003", "a mat, 3"),
    ]
    assert [(r.row, r.record, r.reason, r.detail) for r in found.rejects] == [
        (
            3,
            2,
            "failed_to_download",
            "00000.parquet, key 000000000: img2dataset says failed_to_download: <urlopen error>",
        ),
        (
            4,
            3,
            "failed_to_resize",
            "00000.parquet, key 000000002: img2dataset says failed_to_resize",
        ),
    ]
    assert found.num_records == 4
    assert reader.notes == (
        "lists of img2dataset tell which downloads failed (00000.parquet and so on)",
    )
