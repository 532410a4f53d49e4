import ast
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cit_curate.storage.sql import (
    exact_pattern,
    identifier,
    literal,
    lock_down,
    open_database,
    open_shared,
    parquet,
    sql_list,
)

PACKAGE = Path(__file__).parents[3] / "cit_curate"


def written(path: Path, *values: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"value": list(values)}), path)
    return path


def test_only_one_file_connects_to_duckdb() -> None:
    openers = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        if "duckdb.connect"
        in {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
    ]
    assert openers == ["storage/sql.py"]


def test_a_database_has_the_memory_the_spill_folder_and_the_threads_it_was_given(
    tmp_path: Path,
) -> None:
    with open_database(
        tmp_path / "a.duckdb",
        spill=tmp_path / "spill",
        memory="100MiB",
        max_spill="1GiB",
        max_threads=1,
        keeps_order=False,
    ) as connection:
        rows = connection.execute("SELECT name, value FROM duckdb_settings()").fetchall()
    settings = dict(rows)
    assert settings["memory_limit"] == "100.0 MiB"
    assert settings["temp_directory"] == str(tmp_path / "spill")
    assert settings["max_temp_directory_size"] == "1.0 GiB"
    assert settings["threads"] == "1"
    assert settings["preserve_insertion_order"] == "false"
    assert settings["autoinstall_known_extensions"] == "false"


def test_a_shared_database_opens_while_somebody_in_this_process_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    with open_shared(path) as connection:
        connection.execute("CREATE TABLE one AS SELECT 1 AS value")
    with duckdb.connect(str(path), read_only=True), open_shared(path, read_only=True) as shared:
        assert shared.execute("FROM one").fetchall() == [(1,)]


def test_a_locked_connection_reads_the_named_files_and_nothing_else(tmp_path: Path) -> None:
    named = written(tmp_path / "a[1]/named.parquet", 1)
    other = written(tmp_path / "a1/named.parquet", 2)
    with open_database(None, spill=tmp_path / "spill") as connection:
        connection.execute(f"CREATE VIEW named AS FROM {parquet([named])}")
        lock_down(connection, [str(named), exact_pattern(named)])
        assert connection.execute("FROM named").fetchall() == [(1,)]
        for sql in (
            f"FROM {parquet([other])}",
            f"COPY named TO {literal(str(tmp_path / 'out.csv'))}",
            "SET enable_external_access = true",
            "SET memory_limit = '1GB'",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
    assert not (tmp_path / "out.csv").exists()


def test_a_folder_like_a_partition_is_no_column(tmp_path: Path) -> None:
    path = written(tmp_path / "step=000001/it's.parquet", 3)
    with open_database(None, spill=tmp_path / "spill") as connection:
        result = connection.sql(f"FROM {parquet([path])}")
        assert result.columns == ["value"]
        assert result.fetchall() == [(3,)]


def test_names_and_texts_with_quotes_stay_names_and_texts() -> None:
    assert identifier('a "b"') == '"a ""b"""'
    assert literal("it's") == "'it''s'"
    assert sql_list(["a", "it's"]) == "['a', 'it''s']"
    assert sql_list([]) == "[]"
