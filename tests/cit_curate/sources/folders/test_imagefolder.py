"""Folders whose images are named by `metadata.jsonl`, `.csv` or `.parquet`."""

import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cit_curate.config import ReadConfig
from cit_curate.errors import ConfigError
from cit_curate.sources.columns import Columns
from cit_curate.sources.folders.folder import open_folder
from cit_curate.sources.pairs import pairs_of
from cit_curate.sources.source import find_sources


def images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def write(path, rows):
    """Rows as a metadata file, of the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


def read(folder, columns=None, **options):
    """(id, uri, text key, caption) of the pairs, and (reason, detail) of the rejects."""
    reader = open_folder(folder, columns or Columns(), **options)
    root = options.get("root") or folder
    pairs, rejects, num_records = [], [], 0
    for rows in reader.read():
        raw = pairs_of(rows, reader.columns, image_root=root)
        pairs += raw.pairs.to_pylist()
        rejects += raw.rejects
        num_records += raw.num_records
    kept = [(p["image_id"], p["image_uri"], p["text_key"], p["caption"]) for p in pairs]
    assert num_records >= len(rejects)
    return kept, [(reject.reason, reject.detail) for reject in rejects]


FORMATS = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@pytest.mark.parametrize("name", FORMATS)
def test_the_only_text_column_is_taken_unasked(tmp_path, name):
    images(tmp_path, "train/0.jpg", "train/1.png")
    rows = [{"file_name": "0.jpg", "text": "a red hut"}, {"file_name": "1.png", "text": "a barn"}]
    write(tmp_path / "train" / name, rows)
    pairs, rejects = read(tmp_path)
    assert pairs == [
        ("train/0", "train/0.jpg", "text", "a red hut"),
        ("train/1", "train/1.png", "text", "a barn"),
    ]
    assert rejects == []


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_are_no_text(tmp_path, name):
    images(tmp_path, "0.jpg")
    write(tmp_path / name, [{"file_name": "0.jpg", "label": 3, "score": 0.5, "words": "a hut"}])
    assert read(tmp_path)[0] == [("0", "0.jpg", "words", "a hut")]


@pytest.mark.parametrize("name", FORMATS)
def test_several_text_columns_are_listed_and_may_be_chosen(tmp_path, name):
    images(tmp_path, "0.jpg")
    write(tmp_path / name, [{"file_name": "0.jpg", "title": "a hut", "alt": "red", "n": 1}])
    with pytest.raises(ConfigError, match=r"several columns of text, title, alt; .*--text"):
        read(tmp_path)
    pairs, _ = read(tmp_path, Columns(text=("title", "alt")))
    assert [(key, caption) for _, _, key, caption in pairs] == [("title", "a hut"), ("alt", "red")]
    assert read(tmp_path, Columns(caption="alt"))[0] == [("0", "0.jpg", "alt", "red")]


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, name):
    images(tmp_path, "0.jpg")
    write(tmp_path / name, [{"file_name": "0.jpg", "text": "a hut"}])
    with pytest.raises(ConfigError, match=r"no column 'nowhere'; it has file_name, text"):
        read(tmp_path, Columns(text=("nowhere",)))
    write(tmp_path / name, [{"file_name": "0.jpg", "label": 7}])
    with pytest.raises(ConfigError, match=r"no column of text; .*file_name, label"):
        read(tmp_path)


def test_images_rows_and_paths_that_do_not_match_are_rejects(tmp_path):
    source = tmp_path / "source"
    images(tmp_path, "secret.jpg", "source/0.jpg", "source/1.jpg", "source/b.tif", "source/c.tif")
    (source / "link.jpg").symlink_to("../secret.jpg")
    rows = [
        {"file_name": name, "text": f"text {number}"}
        for number, name in enumerate(
            ["0.jpg", "gone.jpg", "../secret.jpg", "link.jpg", "b.tif", "", "/etc/hostname"]
        )
    ]
    write(source / "metadata.jsonl", rows)
    pairs, rejects = read(source)
    assert [pair[3] for pair in pairs] == ["text 0"]
    assert [reason for reason, _ in rejects] == [
        *("missing_image", "path_escapes", "path_escapes", "format_not_allowed"),
        *("missing_image", "path_escapes"),
        *("path_escapes", "image_without_text", "format_not_allowed"),
    ]
    details = [detail for _, detail in rejects]
    assert "metadata.jsonl line 2 names 'gone.jpg'" in details[0]
    assert "'1.jpg' is not named in metadata.jsonl" in details[7]
    pairs, _ = read(source, root=tmp_path)
    assert [(uri, caption) for _, uri, _, caption in pairs] == [
        ("source/0.jpg", "text 0"),
        ("secret.jpg", "text 2"),
        ("source/link.jpg", "text 3"),
    ]


def test_each_folder_may_have_its_own_file_and_one_without_texts_is_left_out(tmp_path):
    images(tmp_path, "train/0.jpg", "val/0.jpg", "test/0.jpg", "more/0.jpg")
    write(tmp_path / "train" / "metadata.jsonl", [{"file_name": "0.jpg", "text": "in train"}])
    write(tmp_path / "val" / "metadata.csv", [{"file_name": "0.jpg", "text": "in val"}])
    write(tmp_path / "test" / "metadata.csv", [{"file_name": "0.jpg"}])
    pairs, rejects = read(tmp_path)
    assert [pair[0] for pair in pairs] == ["train/0", "val/0"]
    assert [reason for reason, _ in rejects] == ["image_without_text"] * 2
    notes = open_folder(tmp_path, Columns()).notes
    assert any("test/metadata.csv has no text" in note for note in notes)


def test_a_file_above_names_images_in_folders_below(tmp_path):
    images(tmp_path, "a/0.jpg", "b/deep/1.jpg")
    write(
        tmp_path / "metadata.csv",
        [{"file_name": "a/0.jpg", "text": "one"}, {"file_name": "b/deep/1.jpg", "text": "two"}],
    )
    assert [pair[0] for pair in read(tmp_path)[0]] == ["a/0", "b/deep/1"]


def test_file_names_are_found_in_other_spellings(tmp_path):
    images(tmp_path, "a/0.jpg", unicodedata.normalize("NFD", "fête.jpg"))
    rows = [
        {"file_name": "a\\0.jpg ", "text": "one"},
        {"file_name": unicodedata.normalize("NFC", "fête.jpg"), "text": "two"},
    ]
    write(tmp_path / "metadata.jsonl", rows)
    pairs, rejects = read(tmp_path)
    assert [pair[1] for pair in pairs] == ["a/0.jpg", unicodedata.normalize("NFD", "fête.jpg")]
    assert rejects == []


@pytest.mark.parametrize("name", FORMATS)
def test_several_images_in_a_row_are_named_as_unsupported(tmp_path, name):
    images(tmp_path, "0.jpg", "1.jpg")
    if name.endswith("csv"):
        write(tmp_path / name, [{"file_names": "0.jpg 1.jpg", "text": "two"}])
    else:
        write(tmp_path / name, [{"file_names": ["0.jpg", "1.jpg"], "text": "two"}])
    with pytest.raises(ConfigError, match=r"'file_names' names several images .*not supported"):
        read(tmp_path)
    write(tmp_path / name, [{"left_file_name": "0.jpg", "right_file_name": "1.jpg", "text": "x"}])
    with pytest.raises(ConfigError, match=r"left_file_name, right_file_name.*--image"):
        read(tmp_path)
    pairs, _ = read(tmp_path, Columns(image="right_file_name"))
    assert [pair[1] for pair in pairs] == ["1.jpg"]
    write(tmp_path / name, [{"image_file_name": "0.jpg", "text": "x"}])
    assert [pair[1] for pair in read(tmp_path)[0]] == ["0.jpg"]


def test_a_metadata_file_that_names_no_images_leaves_the_texts_to_the_folder(tmp_path):
    images(tmp_path, "0.jpg")
    (tmp_path / "0.txt").write_text("a hut")
    write(tmp_path / "metadata.csv", [{"speaker": "x", "line": "y"}])
    (tmp_path / "metadata.jsonl").write_text("not JSON\n")
    assert read(tmp_path)[0] == [("0", "0.jpg", "caption", "a hut")]


def test_ids_and_extra_columns_come_from_the_file_where_asked(tmp_path):
    images(tmp_path, "0.jpg")
    write(
        tmp_path / "metadata.jsonl", [{"file_name": "0.jpg", "text": "a hut", "no": 7, "by": "K"}]
    )
    columns = Columns(image_id="no", text=("text",), extra=("by",))
    assert read(tmp_path, columns)[0] == [("7", "0.jpg", "text", "a hut")]
    with pytest.raises(ConfigError, match="no column 'number'"):
        read(tmp_path, Columns(image_id="number", text=("text",)))


def test_the_encoding_and_the_delimiter_are_honoured(tmp_path):
    images(tmp_path, "0.jpg")
    content = "file_name;text\n0.jpg;Hütte, rot\n"
    (tmp_path / "metadata.csv").write_bytes(content.encode("cp1252"))
    reading = ReadConfig(encoding="cp1252", delimiter=";")
    assert read(tmp_path, reading=reading)[0][0][3] == "Hütte, rot"
    (tmp_path / "metadata.csv").write_bytes(b"\xff\xfe" + content.encode("utf-16-le"))
    assert read(tmp_path)[0][0][3] == "Hütte, rot"


@pytest.mark.parametrize("folder", ["", "data"])
def test_a_parquet_file_of_metadata_does_not_make_a_folder_a_table(tmp_path, folder):
    place = tmp_path / folder
    images(place, "0.jpg")
    write(place / "metadata.parquet", [{"file_name": "0.jpg", "text": "a hut"}])
    assert [source.format for source in find_sources([tmp_path])] == ["folder"]
    write(place / "metadata.parquet", [{"image_id": "0", "text": "a hut"}])
    if folder:
        assert [source.format for source in find_sources([tmp_path])] == ["huggingface"]
    else:
        with pytest.raises(ConfigError, match=r"1 Parquet file \(metadata\.parquet\), 1 image"):
            find_sources([tmp_path])
