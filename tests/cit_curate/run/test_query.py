import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_fixtures import query_run, row, scanned, small_pool, small_run, write_step

from cit_curate.errors import DamagedError, QueryError, ResourceError
from cit_curate.run import query
from cit_curate.run.ledger import Run
from cit_curate.run.ledger_tables import LEDGER_TABLES, SCHEMAS
from cit_curate.run.report.page import build_report
from cit_curate.storage.durable import describe_file, read_json, write_json

HOSTILE = [
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_parquet('../other.parquet')",
    "SELECT * FROM parquet_scan('selections/../../x.parquet')",
    "SELECT * FROM parquet_metadata('/etc/passwd')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    'SELECT * FROM "/etc/passwd"',
    "FROM 'https://example.org/x.parquet'",
    "DESCRIBE 's3://bucket/x.parquet'",
    "SUMMARIZE 'x.csv'",
    "WITH x AS (SELECT * FROM read_csv('/etc/passwd')) SELECT * FROM x",
    "WITH \"/etc/passwd\" AS (SELECT 1) SELECT * FROM '/etc/passwd'",
    "SELECT (SELECT count(*) FROM read_text('/etc/passwd'))",
    "SELECT * FROM counts WHERE pair_key IN (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM counts, LATERAL (SELECT * FROM read_text('/etc/passwd'))",
    "SELECT * FROM counts UNION ALL SELECT * FROM 'x.csv'",
    "SELECT * FROM counts JOIN read_text('/etc/passwd') ON true",
    "SELECT/**/*/**/FROM/**/read_TEXT/**/('/etc/passwd')",
    "COPY counts TO 'evil.csv'",
    "COPY (SELECT 1) TO 'evil.parquet'",
    "COPY (SELECT 1) TO 'LEDGER_FILE'",
    "COPY (SELECT 1) TO 'LEDGER_FILE' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY selections TO 'LEDGER_FILE'",
    "COPY counts FROM '/etc/passwd'",
    "EXPORT DATABASE 'evil'",
    "IMPORT DATABASE 'evil'",
    "ATTACH 'evil.duckdb' AS evil",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET lock_configuration",
    "PRAGMA database_list",
    "PRAGMA enable_external_access",
    "CALL pragma_database_size()",
    "SET VARIABLE x = 1",
    "CREATE TABLE x AS SELECT 1",
    "CREATE MACRO f() AS 1",
    "CREATE SECRET (TYPE s3)",
    "DROP VIEW counts",
    "INSERT INTO counts VALUES (1)",
    "DELETE FROM counts",
    "WITH d AS (DELETE FROM counts RETURNING *) SELECT * FROM d",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW counts",
    "BEGIN TRANSACTION",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "CHECKPOINT",
    "VACUUM",
    "SELECT * FROM frame",
    "SELECT current_setting('memory_limit')",
    "SELECT main.current_setting('memory_limit')",
    "SELECT getenv('HOME')",
    "SELECT getvariable('x')",
    "SELECT write_log('x')",
    "SELECT sleep_ms(10)",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_views",
    "SELECT * FROM pg_catalog.pg_settings",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM query('SELECT 1')",
    "SELECT * FROM query_table('counts')",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM python_map_function(NULL, NULL)",
    "SHOW DATABASES",
    "SHOW VARIABLES",
    "",
    "-- nothing",
    "SELEC 1",
    "SELECT '\udcff'",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT '" + "x" * 200_000 + "'",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("query") / "run")


def hashes(run: Run) -> dict[Path, str]:
    """SHA-256 of every file of a run."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.path.rglob("*"))
        if path.is_file()
    }


def in_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a table named `frame` where DuckDB looks for one: beside the code that calls it."""
    monkeypatch.setattr(query, "frame", pa.table({"secret": [1]}), raising=False)


def aimed(sql: str, run: Run) -> str:
    """The statement with a file of the run's ledger in it."""
    return sql.replace("LEDGER_FILE", str(run.files("selections")[0]))


@pytest.mark.faults("Q1")
@pytest.mark.parametrize("sql", HOSTILE)
def test_a_statement_that_is_not_one_select_over_the_views_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    monkeypatch.chdir(tmp_path)
    in_scope(monkeypatch)
    before = hashes(run)
    with pytest.raises(QueryError) as caught:
        query_run(run, aimed(sql, run))
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    assert hashes(run) == before


@pytest.mark.faults("Q1")
@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO 'evil.parquet'",
        "COPY (SELECT 1) TO 'LEDGER_FILE'",
        "COPY selections TO 'LEDGER_FILE'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SET enable_external_access = true",
        "ATTACH 'evil.duckdb'",
        "SELECT * FROM frame",
    ],
)
def test_the_sandbox_refuses_by_itself_what_the_check_would_refuse(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    monkeypatch.chdir(tmp_path)
    in_scope(monkeypatch)
    before = hashes(run)
    with run.database() as database, pytest.raises((QueryError, DamagedError)):
        database.rows(aimed(sql, run))
    assert list(tmp_path.iterdir()) == []
    assert hashes(run) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM selections LIMIT 1",
        "select count(*) from Counts;",
        "FROM rounds",
        "DESCRIBE selections",
        "SHOW selections",
        "SUMMARIZE counts",
        "SHOW TABLES",
        "VALUES (1), (2)",
        "WITH best AS (SELECT max(similarity) AS s FROM selections) SELECT s FROM best",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION SELECT n + 1 FROM t WHERE n < 5) FROM t",
        "SELECT * FROM range(3), generate_series(1, 2), unnest([1, 2])",
        "SELECT unnest(histogram) AS n, generate_subscripts(histogram, 1) AS bin FROM rounds",
        "PIVOT selections ON reason IN ('threshold') USING count(*) GROUP BY metadata_text",
        "SELECT pair_key, rank() OVER (ORDER BY similarity DESC) FROM selections QUALIFY true",
        "SELECT * FROM selections ANTI JOIN used USING (pair_key)",
    ],
)
def test_ordinary_questions_are_answered(run: Run, sql: str) -> None:
    query_run(run, sql)


@pytest.mark.parametrize("table", LEDGER_TABLES)
def test_a_view_has_the_columns_of_its_files(run: Run, table: str) -> None:
    result = query_run(run, f"FROM {table}")
    assert result.schema.names == SCHEMAS[table].names
    assert result.schema.types == SCHEMAS[table].types


@pytest.mark.parametrize("table", LEDGER_TABLES)
def test_a_view_of_a_run_without_outer_steps_is_empty(tmp_path: Path, table: str) -> None:
    run = small_run(tmp_path / "run", steps=0)
    result = query_run(run, f"FROM {table}")
    assert len(result) == 0
    assert result.schema.names == SCHEMAS[table].names
    assert result.schema.types == SCHEMAS[table].types
    assert len(query_run(run, "FROM counts")) == 0


@pytest.mark.parametrize("used", [True, False])
def test_counts_are_the_runs_counts(tmp_path: Path, used: bool) -> None:
    run = small_run(tmp_path / "run", steps=3, used=used)
    result = query_run(run, "SELECT pair_key, count FROM counts ORDER BY pair_key")
    assert (
        dict(zip(*(column.to_pylist() for column in result.columns), strict=True)) == run.counts()
    )
    assert run.counts()["00000000_t"] == (6 if used else 3)


@pytest.mark.parametrize("image_id", ["a_b_c", "_", "é̲", "👩‍👩‍👧", "x" * 300, "__x"])
def test_counts_split_a_pair_key_at_its_last_underscore(tmp_path: Path, image_id: str) -> None:
    run = Run.create(tmp_path / "run", config={}, environment={})
    item = scanned(1, outer_step=0, similarity=0.9, entry=0, classes=["cat"])
    item |= {"image_id": image_id, "text_key": "tag-2", "pair_key": f"{image_id}_tag-2"}
    write_step(run, 0, selections=[item])
    assert query_run(run, "SELECT image_id, text_key FROM counts").to_pylist() == [
        {"image_id": image_id, "text_key": "tag-2"}
    ]


def test_pairs_joins_captions_to_the_ledger_by_pair_key(run: Run, tmp_path: Path) -> None:
    pool = small_pool(tmp_path / "pool")
    sql = "SELECT caption, count FROM counts JOIN pairs USING (pair_key) ORDER BY pair_key LIMIT 1"
    result = query_run(run, sql, pool=pool)
    assert result.to_pylist() == [{"caption": row(0)["caption"], "count": 4}]


def test_pairs_without_a_pool_says_which_flag_is_missing(run: Run) -> None:
    with pytest.raises(QueryError, match="--pool POOL"):
        query_run(run, "SELECT * FROM pairs")


def test_an_unknown_name_is_answered_with_the_views_there_are(run: Run) -> None:
    with pytest.raises(QueryError, match=r"'selection'.*selections, near_misses, rounds, used"):
        query_run(run, "SELECT * FROM selection")


def test_an_unknown_column_is_a_query_error(run: Run) -> None:
    with pytest.raises(QueryError, match="similarty"):
        query_run(run, "SELECT similarty FROM selections")


@pytest.mark.faults("Q2")
def test_an_endless_query_stops_at_its_time_limit(run: Run) -> None:
    began = time.monotonic()
    with pytest.raises(ResourceError, match="--timeout-seconds") as caught:
        query_run(
            run,
            "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range*b.range=7",
            timeout_seconds=0.5,
        )
    assert caught.value.exit_code == 5
    assert time.monotonic() - began < 10


@pytest.mark.faults("Q2")
def test_a_query_with_too_many_rows_is_stopped(run: Run) -> None:
    with pytest.raises(ResourceError, match="more than 1,000 rows"):
        query_run(run, "SELECT * FROM range(1000000000)", max_rows=1000)
    assert len(query_run(run, "SELECT * FROM range(1000)", max_rows=1000)) == 1000


@pytest.mark.faults("Q2")
@pytest.mark.slow
def test_a_query_with_too_much_memory_is_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cit_curate.run.query.SPILL_LIMIT", "1MB")
    monkeypatch.setattr("cit_curate.run.query.MEMORY_LIMIT", "30MB")
    sql = "SELECT md5(range::VARCHAR) AS h FROM range(3000000) ORDER BY h"
    with pytest.raises(ResourceError) as caught:
        query_run(run, sql)
    assert "more memory or spill space" in str(caught.value)


@pytest.mark.faults("Q2")
def test_a_result_of_few_rows_and_many_bytes_is_stopped(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cit_curate.run.query.MAX_RESULT_BYTES", 50_000_000)
    with pytest.raises(ResourceError, match=r"more than 50,000,000 bytes; add a LIMIT"):
        query_run(run, "SELECT repeat('x', 1000000) AS x FROM range(400)")
    assert query_run(run, "SELECT repeat('x', 1000000) AS x FROM range(40)").num_rows == 40


@pytest.mark.faults("Q3")
def test_a_query_sees_the_steps_that_were_committed_when_it_began(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1)
    late = [scanned(20, outer_step=1, similarity=0.9, entry=0, classes=["cat"])]
    write_step(run, 1, selections=late, commit=False)
    sql = "SELECT max(outer_step) AS last FROM selections"
    assert query_run(run, sql).to_pylist() == [{"last": 0}]
    with run.database() as database:
        write_step(run, 1, selections=late)
        assert database.query(sql).to_pylist() == [{"last": 0}]
    assert query_run(run, sql).to_pylist() == [{"last": 1}]


@pytest.mark.parametrize("name", ["it's", "run[1]", "a*b?", "with space", "üñ", "100%"])
def test_a_run_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "run1").mkdir()
    run = small_run(tmp_path / name / "run", steps=1)
    assert len(query_run(run, "FROM selections")) == 7


def test_a_relative_run_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run(tmp_path / "run", steps=1)
    monkeypatch.chdir(tmp_path)
    assert len(query_run(Run.open("run"), "FROM selections")) == 7


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1)
    path = run.files("selections")[0]
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(DamagedError, match=r"selections/step=000000/lane=00000\.parquet"):
        query_run(run, "FROM selections")
    path.unlink()
    with pytest.raises(DamagedError, match="is missing"):
        query_run(run, "FROM selections")


def test_the_spill_folder_is_removed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    query_run(run, "FROM counts")
    with pytest.raises(QueryError):
        query_run(run, "FROM nothing")
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)


def older(run: Run, *, steps: Sequence[int]) -> Run:
    """The run as if an older cit had written some of its outer steps: without pool and pools."""
    for manifest in sorted((run.path / "manifests").glob("*.json")):
        value = read_json(manifest)
        if value["outer_step"] not in steps:
            continue
        for number, entry in enumerate(value["files"]):
            path = run.path / entry["path"]
            rows = pq.read_table(path)
            later = ["pool", "pools", "skipped", "audited", "recalls"]
            if path.parts[-3] == "near_misses":
                later.append("reason")
            names = [name for name in later if name in rows.column_names]
            pq.write_table(rows.drop_columns(names), path)
            value["files"][number] = asdict(describe_file(path, run.path, rows=len(rows)))
        write_json(manifest, value)
    return Run.open(run.path)


@pytest.mark.parametrize("steps", [[0], [0, 1]])
def test_a_run_of_before_there_were_several_pools_is_read_with_null_for_the_pool(
    tmp_path: Path, steps: Sequence[int]
) -> None:
    run = small_run(tmp_path / "run")
    counts = run.counts()
    assert len(run.commits()) == 2
    old = older(run, steps=steps)
    assert old.counts() == counts
    for table in LEDGER_TABLES:
        rows = old.read(table)
        assert rows.schema.names == SCHEMAS[table].names
        shown = query_run(old, f"FROM {table}")
        assert shown.schema.names == SCHEMAS[table].names
        assert len(shown) == len(rows)
    assert set(old.read("selections")["pool"].to_pylist()) == {None}
    assert build_report(old, None, tmp_path / "r.html").is_file()
