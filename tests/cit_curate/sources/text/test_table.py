"""Tables that people really have: wrong column counts, bad bytes, odd keys."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.config import ReadConfig
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.sources.columns import Columns
from cit_curate.sources.pairs import RejectRowError, checked_image_uri, pairs_of
from cit_curate.sources.rows import ROW, ROWS_PER_BATCH
from cit_curate.sources.text.table import open_table

LONG = Columns(text_key="key", caption="caption")
WIDE = Columns(text=("title", "tag"), image="image")


def read(path, columns, kind="csv", **reading):
    pairs, rejects, records = [], [], 0
    reader = open_table(path, columns, kind, ReadConfig(**reading))
    for rows in reader.read():
        raw = pairs_of(rows, reader.columns, image_root=path.parent, source=path.name)
        pairs += raw.pairs.to_pylist()
        rejects += raw.rejects
        records += raw.num_records
    return pairs, rejects, records


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.faults("C1")
def test_a_wide_row_gives_a_pair_per_text_that_is_not_empty(tmp_path):
    path = write(
        tmp_path / "a.csv",
        'tag,image_id,image,title\n"cat,roof",1,a/1.jpg,A cat\n,2,,Only title\n" , ,",3,x,  \n',
    )
    pairs, rejects, records = read(path, WIDE)
    assert [(p["image_id"], p["text_key"], p["caption"], p["image_uri"]) for p in pairs] == [
        ("1", "title", "A cat", "a/1.jpg"),
        ("1", "tag", "cat,roof", "a/1.jpg"),
        ("2", "title", "Only title", ""),
    ]
    assert [(r.row, r.reason) for r in rejects] == [(4, "empty_text")]
    assert records == 3


def test_a_long_row_is_one_pair_and_its_key_is_normalised(tmp_path):
    path = write(tmp_path / "a.csv", "image_id,key,caption\n1,Alt_Text,x\n1,!!!,y\n1,title, \n")
    pairs, rejects, _ = read(path, LONG)
    assert [(p["text_key"], p["caption"]) for p in pairs] == [("alt-text", "x")]
    assert [r.reason for r in rejects] == ["bad_text_key", "empty_text"]


@pytest.mark.faults("P1")
def test_wrong_column_counts_become_rejects_with_their_first_line(tmp_path):
    path = write(
        tmp_path / "a.tsv",
        'image_id\tkey\tcaption\n1\tk\t"two\nlines"\n2\tk\n3\tk\tx\ty\n\n4\tk\tz\n5\tk\t"open',
    )
    pairs, rejects, records = read(path, LONG, "tsv", quoting="csv")
    assert [(p[ROW], p["caption"]) for p in pairs] == [(2, "two\nlines"), (7, "z")]
    assert [(r.row, r.reason) for r in rejects] == [
        (4, "column_count"),
        (5, "column_count"),
        (8, "bad_row"),
    ]
    assert records == 5


@pytest.mark.faults("P2")
def test_a_header_that_is_not_utf8_is_named_as_it_is_mended(tmp_path):
    path = write(tmp_path / "a.csv", b"image_id,caf\xe9,note\xff\n1,a cup,black\n")
    columns = Columns(text=("caf\ufffd",), extra=("note\ufffd",))
    pairs, rejects, _ = read(path, columns)
    assert [(p["text_key"], p["caption"], p["note\ufffd"]) for p in pairs] == [
        ("caf", "a cup", "black")
    ]
    assert rejects == []
    write(path, b"image_id,caf\xe9,caf\xe8\n1,a cup,a mug\n")
    with pytest.raises(ConfigError, match=r"a\.csv has 2 columns named 'caf\ufffd'"):
        read(path, columns)


@pytest.mark.faults("P1")
@given(st.lists(st.lists(st.text(max_size=5), min_size=1, max_size=5), max_size=20))
def test_every_record_is_a_pair_or_a_reject(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "key", "caption"])
        writer.writerows(rows)
    pairs, rejects, records = read(path, LONG, quoting="csv")
    assert len(pairs) + len(rejects) == records == len(rows)
    for reject in rejects:
        assert reject.row > 1
        assert reject.detail


@pytest.mark.faults("P2", "C2", "C3", "C4")
@pytest.mark.parametrize(
    ("encoded", "caption", "fixed"),
    [
        (b"caf\xe9", "caf\ufffd", True),
        ("caf\ufffd".encode(), "caf\ufffd", False),
        (b"nul\0byte", "nul\0byte", False),
        (b"\xed\xa0\x80", "\ufffd" * 3, True),
        ("🐱 猫".encode(), "🐱 猫", False),
        ("e\u0301 é".encode(), "e\u0301 é", False),
        (b"<script>{{7*7}}[/red]\x1b[31m", "<script>{{7*7}}[/red]\x1b[31m", False),
        (b"x" * 300_000, "x" * 16_384, True),
    ],
)
def test_captions_are_repaired_never_refused(tmp_path, encoded, caption, fixed):
    path = write(
        tmp_path / "a.csv", b"\xef\xbb\xbfimage_id,key,caption\r\n1,k," + encoded + b"\r\n"
    )
    ((pair,), rejects, _) = read(path, LONG)
    assert (pair["caption"], pair["text_fixed"], rejects) == (caption, fixed, [])


@pytest.mark.faults("P5")
@pytest.mark.parametrize("image_id", [b"", b"a\x01b", b"caf\xe9", b"x" * 256, "é".encode() * 128])
def test_an_image_id_that_cannot_be_a_key_is_rejected(tmp_path, image_id):
    path = write(tmp_path / "a.csv", b"image_id,key,caption\n" + image_id + b",k,c\n")
    pairs, rejects, _ = read(path, LONG)
    assert not pairs
    assert [r.reason for r in rejects] == ["bad_image_id"]


@pytest.mark.faults("P5")
@pytest.mark.parametrize("image_id", ["a.b", "a/b", "..", "a b", "{}", "x" * 255, "é" * 127, "a_b"])
def test_an_odd_image_id_is_kept_as_it_is(tmp_path, image_id):
    path = write(tmp_path / "a.csv", f"image_id,key,caption\n{image_id},k,c\n")
    ((pair,), rejects, _) = read(path, LONG)
    assert pair["image_id"] == image_id
    assert not rejects


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("a/../b.jpg", "b.jpg"),
        ("ROOT/a/b.jpg", "a/b.jpg"),
        ("..b.jpg", "..b.jpg"),
        ("https://x.org/../a.jpg", "https://x.org/../a.jpg"),
        ("../b.jpg", "path_escapes"),
        ("a/../../b.jpg", "path_escapes"),
        ("a/..//../b.jpg", "path_escapes"),
        ("..", "path_escapes"),
        ("/etc/passwd", "path_escapes"),
        ("s3://bucket/x", "bad_image_path"),
        ("file:///etc/passwd", "bad_image_path"),
        ("a\x00b", "bad_image_path"),
    ],
)
def test_image_paths_stay_inside_the_image_root(tmp_path, value, stored):
    path = write(
        tmp_path / "a.csv",
        'image_id,title,tag,image\n1,t,,"' + value.replace("ROOT", str(tmp_path)) + '"\n',
    )
    pairs, rejects, _ = read(path, WIDE)
    assert [*(p["image_uri"] for p in pairs), *(r.reason for r in rejects)] == [stored]


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b.jpg"]), max_size=8))
def test_no_stored_path_climbs(tmp_path_factory, pieces):
    root = tmp_path_factory.getbasetemp()
    try:
        stored = checked_image_uri("/".join(pieces), root)
    except RejectRowError as error:
        assert error.reason == "path_escapes"  # noqa: PT017
    else:
        assert ".." not in stored.split("/")
        assert not stored.startswith("/")


def test_a_missing_column_names_file_columns_and_nearest_spelling(tmp_path):
    path = write(tmp_path / "a.csv", "image_id,key,capton\n1,k,c\n")
    with pytest.raises(ConfigError, match=r"a\.csv has no column 'caption'.*did you mean 'capton'"):
        open_table(path, LONG, "csv")


def test_no_text_column_chosen_says_how_to_choose(tmp_path):
    path = write(tmp_path / "a.csv", "image_id,title\n1,c\n")
    with pytest.raises(ConfigError, match=r"--text COLUMN.*image_id, title"):
        open_table(path, Columns(), "csv")


def test_an_empty_file_and_a_double_column_are_refused(tmp_path):
    with pytest.raises(BadInputError, match="no header line"):
        open_table(write(tmp_path / "a.csv", ""), LONG, "csv")
    with pytest.raises(ConfigError, match="2 columns named 'key'"):
        open_table(write(tmp_path / "b.csv", "image_id,key,key,caption\n"), LONG, "csv")


def test_columns_that_clash_are_refused():
    for wrong in (
        {"text": ("a",), "caption": "b"},
        {"text_key": "k"},
        {"text": ("a_b", "a-b")},
        {"text": ("!!",)},
        {"text": ("a",), "extra": ("caption_hash",)},
        {"text": ("a",), "extra": ("x", "x")},
    ):
        with pytest.raises(ConfigError):
            Columns(**wrong)


def test_rows_come_in_batches_and_a_caption_column_alone_is_enough(tmp_path):
    lines = [f"{number},c{number}" for number in range(ROWS_PER_BATCH + 5)]
    path = write(tmp_path / "a.csv", "image_id,caption\n" + "\n".join(lines))
    columns = Columns(caption="caption")
    sizes = [rows.num_records for rows in open_table(path, columns, "csv").read()]
    assert sizes == [ROWS_PER_BATCH, 5]
    assert {pair["text_key"] for pair in read(path, columns)[0]} == {"caption"}
