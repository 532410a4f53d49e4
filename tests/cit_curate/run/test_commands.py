import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tyro
from run_fixtures import image_bytes, small_run

from cit_curate.config import CsvGuard
from cit_curate.errors import ConfigError, QueryError
from cit_curate.pool.pool import Pool
from cit_curate.run import commands
from cit_curate.sources.columns import Columns

NASTY = ["[/red] [link=file:///etc/passwd]x[/link]", "\x1b]0;owned\x07\x1b[31m", "\u202egnp.exe"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    lines = ["image_id,image,t"]
    for index in range(8):
        (folder / f"{index}.png").write_bytes(image_bytes())
        lines.append(f"{index:08d},{index}.png,caption {index}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    columns = Columns(image="image", text=("t",))
    return Pool.build([folder / "table.csv"], folder / "pool", columns=columns).path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pool: Path) -> Path:
    return small_run(tmp_path_factory.mktemp("run") / "run", pool=pool).path


def test_a_query_prints_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.query(run, "SELECT pair_key, count FROM counts ORDER BY pair_key LIMIT 2")
    out = capsys.readouterr().out
    assert "pair_key" in out
    assert "00000001_t" in out
    assert "2 rows" in out


def test_a_long_table_is_cut_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.query(run, "SELECT * FROM range(5000) AS r(n)")
    out = capsys.readouterr().out
    assert "100 of 5,000 rows" in out
    assert " 4999 " not in out


def test_one_column_of_csv_is_its_header_and_values(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.query(run, "SELECT pair_key FROM counts ORDER BY 1 LIMIT 2", csv=True)
    assert capsys.readouterr().out == "pair_key\n00000000_t\n00000001_t\n"


def test_json_is_one_document_without_nan(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT 'NaN'::FLOAT AS a, 2 AS a, DATE '2026-01-02' AS d, [1.5, 'inf'::DOUBLE] AS l"
    commands.query(run, sql, json=True)
    document = json.loads(capsys.readouterr().out)
    assert document == [{"a": None, "a_1": 2, "d": "2026-01-02", "l": [1.5, None]}]


def test_a_result_can_be_a_parquet_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.query(run, "FROM counts", parquet=tmp_path / "c.parquet")
    assert pq.read_table(tmp_path / "c.parquet").num_rows == 8
    assert capsys.readouterr().out == ""


def test_two_formats_at_once_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        commands.query(run, "FROM counts", csv=True, json=True)


def test_the_pool_is_the_configured_one_unless_named(
    run: Path, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = "SELECT caption FROM pairs ORDER BY pair_key LIMIT 1"
    commands.query(run, sql, csv=True)
    assert capsys.readouterr().out == "caption\ncaption 0\n"
    alone = small_run(tmp_path / "alone", pool=tmp_path / "gone").path
    with pytest.raises(QueryError, match="--pool POOL"):
        commands.query(alone, sql)
    commands.query(alone, sql, pool=(str(pool),), csv=True)
    with pytest.raises(ConfigError, match="no pool"):
        commands.query(alone, sql, pool=(str(tmp_path / "gone"),))


def nasty_sql() -> str:
    values = ", ".join("('" + text.replace("'", "''") + "')" for text in NASTY)
    return f'SELECT * FROM (VALUES {values}) AS t("a[/red]\x1b")'


@pytest.mark.faults("C3")
def test_hostile_text_is_inert_in_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.query(run, nasty_sql())
    out = capsys.readouterr().out
    assert "[/red]" in out
    assert "[link=file:///etc/passwd]x[/link]" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)


@pytest.mark.faults("C3")
def test_hostile_text_is_inert_on_a_terminal_as_csv_and_json(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for flags in ({"csv": True}, {"json": True}):
        commands.query(run, nasty_sql(), **flags)
        assert not {"\x1b", "\x07", "\u202e"} & set(capsys.readouterr().out)


@pytest.mark.faults("C3")
def test_csv_cells_are_no_formulas(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(sql: str, guard: CsvGuard = "formulas") -> list[list[str]]:
        commands.query(run, sql, csv=True, csv_guard=guard)
        return list(csv.reader(io.StringIO(capsys.readouterr().out)))

    sql = "SELECT '=1+1' AS a, -1 AS b, '-1' AS c"
    assert lines(sql) == [["a", "b", "c", "guarded"], ["'=1+1", "-1", "-1", "a"]]
    assert lines(sql, "off") == [["a", "b", "c"], ["=1+1", "-1", "-1"]]
    assert lines("SELECT '-1' AS a, 'b' AS guarded") == [["a", "guarded"], ["-1", "b"]]
    with pytest.raises(ConfigError, match="--csv-guard off"):
        lines("SELECT '=1+1' AS a, 'b' AS guarded")


@pytest.mark.parametrize("flag", ["csv", "json", "table"])
def test_times_that_python_cannot_hold_are_printed(
    run: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    sql = "SELECT DATE '29349-01-26' AS day, [DATE '29349-01-26'] AS days, {'d': TIME '01:02'} AS s"
    commands.query(run, sql, csv=flag == "csv", json=flag == "json")
    assert capsys.readouterr().out.count("29349-01-26") == 2


@pytest.mark.faults("G3")
@pytest.mark.parametrize("flags", [["--csv"], ["--json"], []])
def test_a_closed_pipe_is_no_error(run: Path, flags: list[str]) -> None:
    sql = "SELECT repeat('x', 1000) AS x FROM range(5000)"
    command = [sys.executable, "-m", "cit_train.cli", "query", str(run), sql, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    assert process.returncode == 0


@pytest.mark.parametrize("name", ["c.json", "c.csv", "c.parquet", "C.JSON"])
def test_export_writes_counts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    commands.export(run, tmp_path / "new" / name)
    assert (tmp_path / "new" / name).is_file()
    assert "8 pairs" in capsys.readouterr().out


def test_export_writes_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.export(run, tmp_path / "out", pairs_per_shard=4, json=True)
    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path / "out"),
        "num_pairs": 8,
        "num_shards": 2,
        "rejects": {},
        "reencoded": {},
    }


def test_export_of_a_folder_needs_the_pool(tmp_path: Path) -> None:
    alone = small_run(tmp_path / "alone").path
    with pytest.raises(ConfigError, match="--pool POOL"):
        commands.export(alone, tmp_path / "out")


@pytest.mark.parametrize("name", ["c.npy", "c.tar", "c.xlsx"])
def test_export_to_another_kind_of_file_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.json, \.parquet, \.csv"):
        commands.export(run, tmp_path / name)


def test_report_goes_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.report(run)
    page = (run / "report.html").read_text()
    assert "caption 0" in page
    assert "data:image/webp" in page
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize("command", [commands.query, commands.export, commands.report])
def test_every_flag_has_a_help_text(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        tyro.cli(command, args=["--help"])
    assert ended.value.code == 0
    assert "--pool" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        commands.query(tmp_path, "FROM counts")
