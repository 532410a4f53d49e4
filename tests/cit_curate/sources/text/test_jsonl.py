"""JSON lines as a source: a row or a reject for every line."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cit_curate.errors import BadInputError, ConfigError, DamagedError
from cit_curate.sources.columns import Columns
from cit_curate.sources.pairs import pairs_of
from cit_curate.sources.rows import ROW
from cit_curate.sources.text import files, jsonl
from cit_curate.sources.text.json_array import open_json

WIDE = Columns(image_id="id", image="file", text=("title", "alt"))
LONG = Columns(image_id="id", text_key="kind", caption="text")


def read(path, columns):
    reader = open_json(path, columns, "jsonl")
    pairs, rejects, records = [], [], 0
    for rows in reader.read():
        raw = pairs_of(rows, reader.columns, image_root=path.parent)
        pairs += raw.pairs.to_pylist()
        rejects += raw.rejects
        records += raw.num_records
    assert records == len({r.row for r in rejects} | {p[ROW] for p in pairs})
    return pairs, rejects


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_wide_line_is_an_image_and_its_texts(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        '{"id": "a", "file": "x/a.jpg", "title": "A cat", "alt": "cat", "more": [1]}',
        "",
        '{"alt": "dog", "id": 7}',
        '{"id": "c", "title": null, "alt": ""}',
    )
    pairs, rejects = read(path, WIDE)
    assert [(p["image_id"], p["text_key"], p["caption"], p["image_uri"]) for p in pairs] == [
        ("a", "title", "A cat", "x/a.jpg"),
        ("a", "alt", "cat", "x/a.jpg"),
        ("7", "alt", "dog", ""),
    ]
    assert [(r.row, r.reason) for r in rejects] == [(4, "empty_text")]


def test_a_list_is_several_texts_of_one_key(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        '{"id": "a", "title": ["one", null, " ", "t\\ud800wo"], "alt": "x"}',
        '{"id": "b", "title": [], "alt": [null]}',
        '{"id": "c", "title": "three", "alt": ["y", [1]]}',
        '{"id": "d", "title": "four", "file": ["d.jpg"]}',
        '{"id": ["e"], "title": "five"}',
    )
    pairs, rejects = read(path, WIDE)
    assert [(p["image_id"], p["text_key"], p["caption"]) for p in pairs] == [
        ("a", "title", "one"),
        ("a", "title", "t\ufffdwo"),
        ("a", "alt", "x"),
    ]
    assert [(r.row, r.reason) for r in rejects] == [
        (2, "empty_text"),
        *((line, "bad_row") for line in (3, 4, 5)),
    ]
    assert "'alt' has list [1] in its list" in rejects[1].detail


def test_a_list_of_captions_has_the_key_caption_and_a_single_one_the_name_of_its_column(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        '{"id": "a", "Kept texts": ["one", "two"]}',
        '{"id": "b", "Kept texts": "three"}',
    )
    pairs, _ = read(path, Columns(image_id="id", caption="Kept texts"))
    keys = [(p["image_id"], p["text_key"]) for p in pairs]
    assert keys == [("a", "caption"), ("a", "caption"), ("b", "kept-texts")]
    line = '{"id": "a", "kind": "Alt", "text": ["one", "two"]}'
    pairs, _ = read(write(tmp_path / "b.jsonl", line), LONG)
    assert [p["text_key"] for p in pairs] == ["alt", "alt"]


def test_a_long_line_is_one_text(tmp_path):
    path = write(
        tmp_path / "a.ndjson",
        '{"id": "a", "kind": "Alt Text", "text": "one"}',
        '{"id": "a", "kind": "tag", "text": "two"}',
        '{"id": "a", "text": "no key"}',
    )
    pairs, rejects = read(path, LONG)
    assert [(p["text_key"], p["caption"]) for p in pairs] == [("alt-text", "one"), ("tag", "two")]
    assert [r.reason for r in rejects] == ["bad_text_key"]


@pytest.mark.faults("P1")
@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ('{"id": "a", "title": "cut', "no JSON"),
        ('["id", "title"]', "no object"),
        ("5", "no object"),
        ('{"id": "a", "title": 5}', "'title' is int 5, but must be text"),
        ('{"id": "a", "title": ["x", 7]}', "'title' has int 7 in its list"),
        ('{"id": "a", "file": {"bytes": "x"}, "title": "y"}', "'file' is dict"),
        ('{"id": [1], "title": "x"}', "'id' is list [1], but must be text or a whole number"),
        ('{"id": "a", "file": ["x", "y"], "title": "z"}', "several images in a row are not"),
        ('{"id": true, "title": "x"}', "'id' is bool"),
        ('{"id": ' + "9" * 5000 + ', "title": "x"}', "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_malformed_line_is_rejected_by_its_number(tmp_path, line, detail):
    good = '{"id": "b", "title": "x", "alt": "y", "file": ""}'
    pairs, rejects = read(write(tmp_path / "a.jsonl", good, line), WIDE)
    assert len(pairs) == 2
    assert [(r.row, r.reason) for r in rejects] == [(2, "bad_row")]
    assert detail in rejects[0].detail


@pytest.mark.faults("P5")
def test_a_whole_number_is_an_id_however_it_is_written(tmp_path):
    ids = ("700", "700.0", "7e2", "-0.0", "123456789012345678901", "2.5", "1e18", "NaN", "null")
    lines = [f'{{"id": {number}, "title": "x", "alt": "", "file": ""}}' for number in ids]
    pairs, rejects = read(write(tmp_path / "a.jsonl", *lines), WIDE)
    assert [p["image_id"] for p in pairs] == ["700", "700", "700", "0", "123456789012345678901"]
    assert [(r.row, r.reason) for r in rejects] == [(row, "bad_image_id") for row in (6, 7, 8, 9)]
    assert [
        next(
            words for words in ("no whole number", "beyond 2**53", "is empty") if words in r.detail
        )
        for r in rejects
    ] == ["no whole number", "beyond 2**53", "no whole number", "is empty"]


@pytest.mark.faults("P2")
def test_text_that_is_not_utf8_is_replaced_and_flagged(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": "a", "title": "caf\xe9", "alt": "a\\ud800b"}\r\n'
        b'{"id": "b", "title": "ok", "file": ""}'
    )
    pairs, _ = read(path, WIDE)
    assert [(p["caption"], p["text_fixed"]) for p in pairs] == [
        ("caf\ufffd", True),
        ("a\ufffdb", True),
        ("ok", False),
    ]


def test_a_line_that_is_too_long_is_skipped_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_CHARS", 100)
    monkeypatch.setattr(jsonl, "MAX_LINE_CHARS", 100)
    line = '{"id": "%s", "title": "%s", "file": "", "alt": ""}'
    path = write(
        tmp_path / "a.jsonl", line % ("a", "x"), line % ("b", "y" * 350), line % ("c", "z")
    )
    pairs, rejects = read(path, WIDE)
    assert [p["image_id"] for p in pairs] == ["a", "c"]
    assert [(r.row, r.reason) for r in rejects] == [(2, "bad_row")]


def test_a_column_that_no_line_has_is_named_with_those_there_are(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"id": 1, "titel": "x"}', '{"alt": "y", "file": "z"}')
    with pytest.raises(ConfigError, match=r"no column 'title'; it has id, titel.*mean 'titel'"):
        open_json(path, WIDE, "jsonl")
    write(path, "nothing")
    with pytest.raises(BadInputError, match="none of its lines is a JSON object"):
        open_json(path, WIDE, "jsonl")


def test_extra_fields_are_carried_as_text(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        '{"id": 1, "title": "x", "score": 0.5, "size": [3, 4], "url": "ü"}',
        '{"id": 2, "title": "y"}',
    )
    pairs, _ = read(path, Columns(image_id="id", text=("title",), extra=("score", "size", "url")))
    assert [(p["score"], p["size"], p["url"]) for p in pairs] == [
        ("0.5", "[3, 4]", "ü"),
        (None, None, None),
    ]


@pytest.mark.faults("P3")
def test_a_compressed_file_is_read_and_a_cut_one_is_damaged(tmp_path):
    lines = b"".join(b'{"id": %d, "title": "title %d"}\n' % (n, n * n) for n in range(500))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines))
    columns = Columns(image_id="id", text=("title",))
    pairs, _ = read(path, columns)
    assert len(pairs) == 500
    content = path.read_bytes()
    for size in range(1, len(content), len(content) // 40):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"a\.jsonl\.gz is damaged"):
            read(path, columns)


@pytest.mark.faults("P1")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"id": st.text(min_size=1, max_size=9) | st.integers(), "title": st.text(max_size=20)}
        ),
        min_size=1,
    ),
    ascii_only=st.booleans(),
)
def test_every_line_becomes_a_pair_or_a_reject(tmp_path, rows, ascii_only):
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("utf-8", errors="surrogatepass"))
    pairs, rejects = read(tmp_path / "a.jsonl", Columns(image_id="id", text=("title",)))
    assert len(pairs) + len(rejects) == len(rows)
    assert {r.reason for r in rejects} <= {"empty_text", "bad_image_id"}
    kept = {p[ROW]: p["caption"] for p in pairs}
    for line, row in enumerate(rows, 1):
        if line in kept and len(row["title"].encode("utf-8", "replace")) == len(row["title"]):
            assert kept[line] == row["title"]
