"""Names of columns: which ones a pool takes, and by which it stores them."""

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro

from cit_curate.errors import ConfigError
from cit_curate.pool import commands
from cit_curate.pool.pool import Pool
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.run.subset import subset_pool
from cit_curate.sources.columns import RESERVED_COLUMNS, Columns, parse_extra


@pytest.fixture
def table(tmp_path: Path) -> Path:
    columns = {
        "id": ["1", "2"],
        "Caption": ["a brass bell", "a rope"],
        "Source": ["shop", "attic"],
        "url": ["a", "b"],
        "URL": ["c", "d"],
        "colour": [3, 4],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def build(table: Path, extra: str) -> Path:
    out = table.parent / "pool"
    flags = [str(table), "--image-id", "id", "--text", "Caption", "--extra", extra]
    tyro.cli(commands.build, args=[*flags, "--out", str(out), "--json"])
    return out


@pytest.mark.parametrize(
    ("extra", "clash"),
    [
        ("colour,Source", "--extra Source: 'source' is the pool's own column"),
        ("Image_URI", "--extra Image_URI: 'image_uri' is the pool's own column"),
        ("Caption", "--extra Caption: 'caption' is the pool's own column"),
        ("url,URL", "--extra URL: column 'url' is stored by that name, too"),
        ("colour=URL,url", "--extra url: column 'colour' is stored by that name, too"),
        ("colour=Row", "--extra colour: 'row' is a column of the view rejects"),
        ("colour,colour=b", "--extra names a column twice"),
        ("colour=", "--extra colour=: write COLUMN=NAME"),
        ("=b", "--extra =b: write COLUMN=NAME"),
    ],
)
def test_names_that_are_one_in_sql_are_refused_before_anything_is_read(
    table: Path, extra: str, clash: str
) -> None:
    table.write_bytes(b"not read")
    with pytest.raises(ConfigError) as error:
        build(table, extra)
    assert clash in str(error.value)
    assert not (table.parent / "pool").exists()


def test_the_message_says_how_to_store_it_by_another_name(table: Path) -> None:
    with pytest.raises(ConfigError, match="--extra Source=own_source"):
        build(table, "Source")
    build(table, "Source=own_source")


@pytest.mark.parametrize("name", [*RESERVED_COLUMNS, "__row__", "__list_key__"])
def test_reserved_names_are_refused_in_any_case(name: str) -> None:
    for written in (name, name.upper()):
        with pytest.raises(ConfigError, match=f"'{name}' is "):
            Columns(extra=(written,))
        with pytest.raises(ConfigError, match="--extra a: "):
            Columns(extra=("a",), extra_names=(written,))
        assert Columns(extra=(written,), extra_names=("own",)).stored_names == {written: "own"}


def test_extra_columns_are_stored_by_their_new_names(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = build(table, "colour, Source = origin,url=a,URL=b")
    assert json.loads(capsys.readouterr().out)["num_pairs"] == 2
    names = ["colour", "origin", "a", "b"]
    with duckdb.connect(str(pool / "pool.duckdb"), read_only=True) as catalog:
        rows = catalog.execute(f"SELECT {', '.join(names)} FROM pairs").fetchall()
        stored = [row[0] for row in catalog.execute("DESCRIBE pairs").fetchall()]
    assert rows == [(3, "shop", "a", "c"), (4, "attic", "b", "d")]
    assert stored[-4:] == names


def test_a_list_of_extra_columns_is_parsed() -> None:
    assert parse_extra("") == ((), ())
    assert parse_extra("a, b,") == (("a", "b"), ())
    assert parse_extra("a,b=c") == (("a", "b"), ("a", "c"))
    assert parse_extra("a=b=c") == (("a=b",), ("c",))
    with pytest.raises(ConfigError, match="1 names for 2"):
        Columns(extra=("a", "b"), extra_names=("c",))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_every_format_renames(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": "1", "text": "a lamp", "Source": "x"}, {"id": "2", "text": "a net"}]
    if suffix == "jsonl":
        content = "\n".join(map(json.dumps, rows))
    else:
        mark = {"csv": ",", "tsv": "\t"}[suffix]
        cells = [["id", "text", "Source"], ["1", "a lamp", "x"], ["2", "a net", ""]]
        content = "\n".join(map(mark.join, cells))
    (tmp_path / f"t.{suffix}").write_text(content)
    columns = Columns(image_id="id", text=("text",), extra=("Source",), extra_names=("origin",))
    pool = Pool.build([tmp_path / f"t.{suffix}"], tmp_path / "pool", columns=columns)
    origin = pq.read_table(pool.path / "pairs")["origin"].to_pylist()
    assert [value or None for value in origin] == ["x", None]


def test_every_other_name_works_wherever_a_pool_is_read(tmp_path: Path) -> None:
    """Names of the ledger's own columns, of SQL, and of what queries add and hide."""
    ledger = {field.name for schema in SCHEMAS.values() for field in schema}
    odd = {"part", "first_row", "seq", "c0", "place", "select", "a.b", "a", 'q"q', "x'y", "é", "É"}
    names = sorted((ledger | odd) - RESERVED_COLUMNS.keys())
    extra = {name: [f"{name} {row}" for row in range(3)] for name in names}
    own = {"key": ["7", "8", "7"], "kind": ["a", "a", "b"], "text": ["a bell", "a net", "an oar"]}
    pq.write_table(pa.table({**own, **extra}), tmp_path / "t.parquet")
    columns = Columns(image_id="key", text_key="kind", caption="text", extra=tuple(names))
    pool = Pool.build([tmp_path / "t.parquet"], tmp_path / "x=1" / "pool", columns=columns)
    (tmp_path / "counts.json").write_text('{"7_a": 1, "7_b": 2}')
    run = import_counts(tmp_path / "counts.json", pool, tmp_path / "run").run
    with run.database(pool) as database:
        rows = database.query("SELECT * FROM pairs ORDER BY caption").to_pylist()
    for row, pair in enumerate(rows):
        assert {name: pair[name] for name in names} == {name: extra[name][row] for name in names}
    assert subset_pool(pool, tmp_path / "subset", run=run).num_pairs == 2
    with duckdb.connect(str(pool.path / "pool.duckdb"), read_only=True) as catalog:
        assert len(catalog.execute("DESCRIBE pairs").fetchall()) == 7 + len(names)
        assert catalog.execute("SELECT sum(num_pairs) FROM images").fetchone() == (3,)
