"""Every Arrow type of an extra column is carried, cast with a note, or refused."""

import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cit_curate.carried import (
    NotCarriedError,
    carried,
    carried_note,
    carried_type,
    same_in_sql,
)
from cit_curate.errors import ConfigError
from cit_curate.pool.build.summary import read_build_report
from cit_curate.pool.check import check_pool
from cit_curate.pool.pool import Pool
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.sources.columns import Columns

NOON = datetime.datetime(2024, 5, 6, 12, 30, 15, 250_001)
UTC_NOON = NOON.replace(tzinfo=datetime.UTC)
PRICE = decimal.Decimal("12.50")
TEXTS = ["pier", None, "mole"]


def times(kind: pa.DataType) -> pa.Array:
    return pa.array([NOON, None, NOON], pa.timestamp("us")).cast(kind, safe=False)


def extension(kind: Any, values: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, values)


SAME = {
    "null": pa.nulls(3),
    "bool": pa.array([True, None, False]),
    **{
        str(kind): pa.array([1, None, 3], kind)
        for kind in (
            *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()),
            *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        )
    },
    "string": pa.array(TEXTS),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "string_view": pa.array(TEXTS, pa.string_view()),
    "binary": pa.array([b"\xff", None, b""]),
    "large_binary": pa.array([b"\xff", None, b""], pa.large_binary()),
    "binary_view": pa.array([b"\xff", None, b""], pa.binary_view()),
    "fixed_size_binary": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "date32": pa.array([NOON.date(), None, datetime.date(1, 1, 1)]),
    "time32_s": pa.array([datetime.time(1, 2, 3), None, None], pa.time32("s")),
    "time32_ms": pa.array([datetime.time(1, 2, 3), None, None], pa.time32("ms")),
    "time64_us": pa.array([datetime.time(1, 2, 3), None, None], pa.time64("us")),
    "time64_ns": pa.array([datetime.time(1, 2, 3), None, None], pa.time64("ns")),
    **{f"timestamp_{unit}": times(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")},
    **{f"utc_{unit}": times(pa.timestamp(unit, "UTC")) for unit in ("s", "ms", "us", "ns")},
    "decimal32": pa.array([PRICE, None, None], pa.decimal32(6, 2)),
    "decimal64": pa.array([PRICE, None, None], pa.decimal64(12, 2)),
    "decimal128": pa.array([PRICE, None, None], pa.decimal128(38, 10)),
    "decimal256": pa.array([PRICE, None, None], pa.decimal256(38, 10)),
    "decimal_hundreds": pa.array([decimal.Decimal(100), None, None], pa.decimal128(5, -2)),
    "list": pa.array([[1, 2], None, []]),
    "large_list": pa.array([[1, 2], None, []], pa.large_list(pa.int64())),
    "list_view": pa.array([[1, 2], None, []], pa.list_view(pa.int64())),
    "large_list_view": pa.array([[1, 2], None, []], pa.large_list_view(pa.int64())),
    "fixed_size_list": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2)),
    "list_of_lists": pa.array([[["a"], None], None, []], pa.list_(pa.list_(pa.string_view()))),
    "list_of_codes": pa.array([["a"], None, ["a", "b"]],
                              pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "struct": pa.array([{"x": 1, "y": "a"}, None, {"x": 2, "y": None}]),
    "struct_of_views": pa.array([{"x": "a"}, None, None], pa.struct([("x", pa.string_view())])),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "dictionary_of_numbers": pa.array([7, None, 7]).dictionary_encode(),
    "dictionary_of_times": times(pa.timestamp("us")).dictionary_encode(),
    "run_ends": pa.RunEndEncodedArray.from_arrays(pa.array([1, 3], pa.int32()), ["a", "b"]),
}  # fmt: skip
# A type that says more than the stored one does, and the values as stored.
NOTED: dict[str, tuple[pa.Array, list[object]]] = {
    "float16": (pa.array([1.5, None], pa.float32()).cast(pa.float16()), [1.5, None]),
    "date64": (pa.array([NOON.date(), None], pa.date64()), [NOON.date(), None]),
    "duration": (pa.array([5, None], pa.duration("ms")), [5, None]),
    "durations": (pa.array([[5], None], pa.list_(pa.duration("s"))), [[5], None]),
    "berlin": (times(pa.timestamp("us", "Europe/Berlin"))[:2], [UTC_NOON, None]),
    "offset": (times(pa.timestamp("us", "+05:30"))[:2], [UTC_NOON, None]),
    "nowhere": (times(pa.timestamp("us", "Mars/Olympus"))[:2], [UTC_NOON, None]),
    "decimal256": (pa.array([PRICE, None], pa.decimal256(39, 2)), ["12.50", None]),
    "uuid": (
        extension(pa.uuid(), pa.array([uuid.UUID(int=7).bytes, None], pa.binary(16))),
        [str(uuid.UUID(int=7)), None],
    ),
    "json": (extension(pa.json_(pa.string()), pa.array(['{"a": 1}', None])), ['{"a": 1}', None]),
    "bool8": (extension(pa.bool8(), pa.array([1, None], pa.int8())), [1, None]),
    "opaque": (extension(pa.opaque(pa.string(), "t", "v"), pa.array(["a", None])), ["a", None]),
    "tensor": (
        extension(
            pa.fixed_shape_tensor(pa.float32(), [2]),
            pa.array([[1, 2], None], pa.list_(pa.float32(), 2)),
        ),
        [[1.0, 2.0], None],
    ),
}
REFUSED = {
    "interval": pa.array([pa.MonthDayNano([1, 2, 3])]),
    "sparse union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    "dense union": pa.UnionArray.from_dense(
        pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]
    ),
    "no fields": pa.array([{}], pa.struct([])),
    "fields that differ by case": pa.array([{}], pa.struct([("x", pa.int8()), ("X", pa.int8())])),
}


def plain(values: pa.Array) -> list[object]:
    """The values in Python, those of an Arrow that knows the type."""
    return values.to_pylist()


@pytest.mark.parametrize("name", SAME)
def test_a_type_that_parquet_and_sql_know_keeps_its_values(name: str) -> None:
    stored = carried(SAME[name])
    assert stored.type == carried_type(SAME[name].type)
    assert plain(stored) == plain(SAME[name])
    assert carried_note(SAME[name].type) == ""
    assert plain(carried(SAME[name][1:])) == plain(SAME[name])[1:]


@pytest.mark.parametrize("name", NOTED)
def test_a_type_that_they_do_not_know_is_cast_and_that_is_said(name: str) -> None:
    values, expected = NOTED[name]
    stored = carried(values)
    assert stored.type == carried_type(values.type)
    assert plain(stored) == expected
    assert carried_note(values.type).startswith("stored as ")


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_neither_can_hold_is_refused(name: str) -> None:
    with pytest.raises(NotCarriedError):
        carried_type(REFUSED[name].type)


def test_a_value_that_does_not_fit_and_text_that_is_none_are_refused() -> None:
    far = pa.array([2**62], pa.timestamp("s"))
    with pytest.raises(NotCarriedError, match="cannot be stored"):
        carried(far)
    bad = pa.array([[b"\xff"]], pa.list_(pa.binary())).view(pa.list_(pa.string()))
    with pytest.raises(NotCarriedError, match="cannot be stored"):
        carried(bad)


def test_names_are_compared_as_sql_does() -> None:
    assert same_in_sql(["a", "b", "A"]) == ("a", "A")
    assert same_in_sql(["é", "É", "ß", "SS"]) is None
    with duckdb.connect() as connection:
        connection.execute('CREATE TABLE t ("é" INT, "É" INT, "ß" INT, "SS" INT)')
        with pytest.raises(duckdb.Error):
            connection.execute("CREATE TABLE u (a INT, b INT, A INT)")


@pytest.mark.parametrize("is_scattered", [False, True])
def test_every_type_goes_through_build_query_and_verify(tmp_path: Path, is_scattered: bool) -> None:
    # One table for the types that Parquet holds, one for the others: an Arrow stream.
    noted = {f"noted_{name}": pa.concat_arrays([v, v[1:]]) for name, (v, _) in NOTED.items()}
    ids, keys = (["7", "8", "7"], ["a", "a", "b"]) if is_scattered else (["7", "8", "9"], ["a"] * 3)
    own = {"id": ids, "key": keys, "text": ["a buoy", "a net", "an oar"]}
    table = pa.table({**own, **SAME, **noted})
    folder = tmp_path / "saved"
    folder.mkdir()
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    extra = (*SAME, *noted)
    columns = Columns(image_id="id", text_key="key", caption="text", extra=extra)
    pool = Pool.build([folder], tmp_path / "pool", columns=columns)
    assert (check_pool(tmp_path / "pool").damage, check_pool(tmp_path / "pool").notes) == ([], [])
    notes = read_build_report(tmp_path / "pool").notes
    told = [note.split()[2] for note in notes if note.startswith("saved: --extra ")]
    assert told == [*noted]
    pairs = pq.read_table(tmp_path / "pool" / "pairs").sort_by("caption")
    (tmp_path / "counts.json").write_text('{"7_a": 1}')
    run = import_counts(tmp_path / "counts.json", pool, tmp_path / "run").run
    with run.database(pool) as database:
        asked = database.query("SELECT * FROM pairs ORDER BY caption")
    for name in extra:
        expected = plain(carried(table[name].combine_chunks()))
        if "map" not in name:  # a map is a list of pairs in Arrow, and in DuckDB a dict
            assert plain(asked[name]) == expected, name
        assert plain(pairs[name]) == expected, name


@pytest.mark.parametrize("name", REFUSED)
def test_a_build_names_the_column_and_the_type_that_it_refuses(tmp_path: Path, name: str) -> None:
    values = REFUSED[name][:0]
    folder = tmp_path / "saved"
    folder.mkdir()
    table = pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string()),
                      "odd": values})  # fmt: skip
    with pa.ipc.new_stream(folder / "data.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    columns = Columns(image_id="id", text=("text",), extra=("odd",))
    with pytest.raises(ConfigError, match=r"--extra odd: the column is .*leave it out"):
        Pool.build([folder], tmp_path / "pool", columns=columns)
    assert not (tmp_path / "pool").exists()


def test_a_column_without_a_value_takes_the_type_of_another_source(tmp_path: Path) -> None:
    for number, values in enumerate([pa.nulls(2), pa.array([[1], None]), pa.nulls(2)]):
        ids = [f"{number}{row}" for row in range(2)]
        table = pa.table({"id": ids, "text": ["a lamp", "a rope"], "sizes": values})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    sources = sorted(tmp_path.glob("*.parquet"))
    columns = Columns(image_id="id", text=("text",), extra=("sizes",))
    Pool.build(sources, tmp_path / "pool", columns=columns)
    sizes = pq.read_table(tmp_path / "pool" / "pairs")["sizes"]
    assert sizes.to_pylist() == [None, None, [1], None, None, None]
