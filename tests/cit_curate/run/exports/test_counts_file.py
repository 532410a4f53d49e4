"""Files of counts: every entry is read or rejected, and what cannot be read is named."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cit_curate.csv_cells import csv_text
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.run.exports import counts_file
from cit_curate.run.exports.counts_file import read_counts


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def entries(path: Path) -> list[tuple[int, str, int]]:
    tables = [batch.entries for batch in read_counts(path)]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def rejects(path: Path) -> list[tuple[int, str]]:
    tables = [batch.rejects for batch in read_counts(path)]
    return [(row["entry"], row["reason"]) for table in tables for row in table.to_pylist()]


def test_the_published_form_is_read(tmp_path: Path) -> None:
    counts = {"00001234_tag": 3, "98765432_title": 1, "a_b_c-d": 7}
    for number, text in enumerate(
        [json.dumps(counts), json.dumps(counts, indent=2), "\ufeff" + json.dumps(counts)]
    ):
        path = written(tmp_path / f"{number}.json", text)
        assert entries(path) == [(n, *entry) for n, entry in enumerate(counts.items(), 1)]


text_keys = st.from_regex(r"[a-z0-9-]{1,6}", fullmatch=True)
image_ids = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=6)
pair_keys = st.builds("{}_{}".format, image_ids, text_keys)
counts_of_pairs = st.dictionaries(pair_keys, st.integers(1, 2**53 - 1), max_size=20)


@given(counts_of_pairs, st.sampled_from(["json", "csv", "parquet"]))
def test_any_counts_come_back_from_every_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int], kind: str
) -> None:
    path = tmp_path_factory.mktemp("counts") / f"counts.{kind}"
    if kind == "json":
        path.write_text(json.dumps(counts), encoding="utf-8")
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            rows = [(csv_text(key), "x", count) for key, count in counts.items()]
            writer.writerows([("pair_key", "caption", "count"), *rows])
    else:
        table = {"count": pa.array(counts.values(), pa.int64()), "pair_key": list(counts)}
        pq.write_table(pa.table(table), path)
    if kind == "csv" and any("\r" in key for key in counts):
        return  # a bare carriage return ends a line in CSV
    assert {key: count for _, key, count in entries(path)} == counts


BAD_ENTRIES = [
    ('"a_t": 0', "bad_count"),
    ('"a_t": -1', "bad_count"),
    ('"a_t": 1.0', "bad_count"),
    ('"a_t": 1e3', "bad_count"),
    ('"a_t": true', "bad_count"),
    ('"a_t": null', "bad_count"),
    ('"a_t": "3"', "bad_count"),
    ('"a_t": 9007199254740992', "bad_count"),
    ('"a_t": 99999999999999999999999999', "bad_count"),
    ('"a_t": 1e999999999', "bad_count"),
    ('"a_t": [1, {"b_t": 2}]', "bad_count"),
    ('"a_t": {"b_t": {"c_t": 2}, "d_t": []}', "bad_count"),
    ('"without": 1', "bad_key"),
    ('"a_": 1', "bad_key"),
    ('"_t": 1', "bad_key"),
    ('"a_Title": 1', "bad_key"),
    ('"a_t ": 1', "bad_key"),
    ('"": 1', "bad_key"),
]


@pytest.mark.parametrize(("entry", "reason"), BAD_ENTRIES)
def test_a_bad_entry_is_set_aside_with_its_number(tmp_path: Path, entry: str, reason: str) -> None:
    path = written(tmp_path / "c.json", f'{{"x_t": 1, {entry}, "y_t": 2}}')
    assert rejects(path) == [(2, reason)]
    assert entries(path) == [(1, "x_t", 1), (3, "y_t", 2)]


BROKEN = [
    ("", "after entry 0"),
    ("[1]", "no JSON object"),
    ('"text"', "no JSON object"),
    ('{"a_t": 1', "after entry 1 .'a_t'.*premature EOF"),
    ('{"a_t": 1, "b_t": NaN}', "after entry 1 .*invalid char"),
    ('{"a_t": 1,}', "after entry 1"),
    ('{"a_t": 1}{"b_t": 2}', "trailing garbage"),
    (b'{"a\xff_t": 1}', "UTF8"),
    ('{"a_t": 1, "b_t": 2 "c_t"', "after entry 2"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_what_is_no_json_object_is_named_with_its_place(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        entries(written(tmp_path / "c.json", text))


def test_the_place_is_counted_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_file, "BATCH_ENTRIES", 10)
    body = ", ".join(f'"{n}_t": {n + 1}' for n in range(25))
    path = written(tmp_path / "c.json", f"{{{body}, oops")
    with pytest.raises(BadInputError, match=r"after entry 25 \('24_t'\)"):
        entries(path)
    good = written(tmp_path / "good.json", f"{{{body}}}")
    assert [batch.num_entries for batch in read_counts(good)] == [10, 10, 5]
    assert [number for number, _, _ in entries(good)] == list(range(1, 26))


def test_a_table_without_the_columns_or_with_a_short_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no column count; it has pair_key, n"):
        entries(written(tmp_path / "a.csv", "pair_key,n\na_t,1\n"))
    with pytest.raises(BadInputError, match=r"after entry 1 \('a_t'\): line 3 has 1 cells"):
        entries(written(tmp_path / "b.csv", "pair_key,count\na_t,1\nb_t\n"))
    with pytest.raises(BadInputError, match="cannot be read"):
        entries(written(tmp_path / "c.parquet", b"PAR1nonsensePAR1"))
    path = written(tmp_path / "d.csv", "pair_key,count\na_t,\nb_t,x\nc_t,1_0\nd_t,4\n")
    assert rejects(path) == [(1, "bad_count"), (2, "bad_count"), (3, "bad_count")]
    assert entries(path) == [(4, "d_t", 4)]


def test_a_missing_file_and_another_kind_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        entries(tmp_path / "c.json")
    with pytest.raises(ConfigError, match=r"\.json, \.parquet, \.csv"):
        entries(written(tmp_path / "c.txt", "{}"))
