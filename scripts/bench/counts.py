"""Counts over a long ledger, against plain DuckDB on the same Parquet files.

    python -m scripts.bench.counts [--rows 100000000] [--pairs 20000000] [--rows-a-file 100000]

A run is made up whose `used` rows name pairs of a pool at random. Each way runs in a process of its
own, so that its peak memory is its own; all have the same memory limit and spill to the same disk.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import duckdb

from cit_curate.run.exports.export import export_counts
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.paths import step_folder
from cit_curate.run.query import MAX_THREADS, MEMORY_LIMIT
from cit_curate.storage.durable import FileEntry
from scripts.bench.side_by_side import Comparison, Timing, add_output, show

GROUPED = "SELECT pair_key, CAST(sum(times_used) AS BIGINT) AS count FROM {files} GROUP BY pair_key"
TOTALS = "SELECT count(*) AS pairs, sum(count) AS uses FROM {counts}"


def main() -> None:
    """Make the ledger, count it in every way, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000, help="rows of `used`")
    parser.add_argument("--pairs", type=int, default=20_000_000, help="pairs they are of")
    parser.add_argument("--rows-a-file", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the files go")
    parser.add_argument("--keep", action="store_true", help="leave the ledger there, or use it")
    add_output(parser)
    asked = parser.parse_args()
    made = asked.folder if asked.keep else tempfile.mkdtemp(prefix="cit-counts-", dir=asked.folder)
    folder = Path(made)
    try:
        if not (folder / "run").is_dir():
            write_ledger(folder / "run", asked.rows, asked.pairs, asked.rows_a_file)
        facts = {"rows": asked.rows, "files": -(-asked.rows // asked.rows_a_file)}
        show(compare(folder, facts, asked.repeats), asked.json)
    finally:
        if not asked.keep:
            shutil.rmtree(folder)


def write_ledger(path: Path, num_rows: int, num_pairs: int, rows_a_file: int) -> None:
    """A run of one lane whose outer steps used `rows_a_file` random pairs each."""
    run = Run.create(path, config={}, environment={})
    with duckdb.connect() as connection:
        connection.execute("SELECT setseed(0.5)")
        for step, start in enumerate(range(0, num_rows, rows_a_file)):
            name = f"used/{step_folder(step)}/lane=00000.parquet"
            (path / name).parent.mkdir(parents=True)
            rows = min(rows_a_file, num_rows - start)
            connection.execute(
                "COPY (SELECT outer_step, 0::INTEGER AS lane, lpad(pair::VARCHAR, 8, '0') || "  # noqa: S608 - our own numbers
                "['_title', '_desc', '_tag'][1 + pair % 3] AS pair_key, 1::BIGINT AS times_used, "
                "update AS first_update, update AS last_update, ''::VARCHAR AS pool FROM (SELECT "
                f"{step}::BIGINT AS outer_step, (random() * {num_pairs})::BIGINT AS pair, "
                f"({step} * 100 + i // 1024)::BIGINT AS update FROM range({rows}) t(i))) "
                f"TO '{path / name}' (FORMAT parquet, COMPRESSION zstd)"
            )
            # The hash is not read by what is measured.
            entry = FileEntry(name, rows, (path / name).stat().st_size, "")
            run.commit(Commit(outer_step=step, update=step * 100, cursors=(), files=(entry,)))


def compare(folder: Path, facts: Mapping[str, str | int | float], repeats: int) -> list[Comparison]:
    """The view, the export and the Python API, each beside the SQL that it stands for."""
    rows = float(facts["rows"])
    compared: list[tuple[str, dict[str, Callable[[Path], object]]]] = [
        ("Counting each pair's uses", {"DuckDB": plain_totals, "cit": view_totals}),
        ("Counts, in order, as a Parquet file", {"DuckDB": plain_file, "cit": export_parquet}),
        ("Counts, in order, as a JSON file", {"DuckDB": plain_json, "cit": export_json}),
    ]
    comparisons = []
    for title, ways in compared:
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                measured[name].append(_apart(way, folder))
        timings = tuple(
            Timing(
                name,
                tuple(seconds for seconds, _ in runs),
                rows,
                {"peak MB": f"{max(peak for _, peak in runs):,.0f}"},
            )
            for name, runs in measured.items()
        )
        comparisons.append(Comparison(title, "rows", "DuckDB", timings, facts))
    return comparisons


def _apart(way: Callable[[Path], object], folder: Path) -> tuple[float, float]:
    """Seconds and peak MB of a way in a fresh process."""
    child = multiprocessing.get_context("spawn").Process(target=_timed, args=(way, folder))
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"{way} failed")
    seconds, peak = json.loads((folder / "measured.json").read_text())
    return seconds, peak


def _timed(way: Callable[[Path], object], folder: Path) -> None:
    started = time.perf_counter()
    way(folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / "measured.json").write_text(json.dumps([seconds, peak]))


def _plain(folder: Path) -> duckdb.DuckDBPyConnection:
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    spill = str(folder / "spill")
    connection = duckdb.connect(
        config={"memory_limit": MEMORY_LIMIT, "threads": threads, "temp_directory": spill}
    )
    connection.execute("SET enable_progress_bar = false")
    return connection


def _grouped(folder: Path) -> str:
    files = f"read_parquet('{folder / 'run' / 'used'}/*/*.parquet', hive_partitioning = false)"
    return GROUPED.format(files=files)


def plain_totals(folder: Path) -> object:
    """Group by pair key: how many pairs, and how many uses in all."""
    with _plain(folder) as connection:
        return connection.sql(TOTALS.format(counts=f"({_grouped(folder)})")).fetchall()


def view_totals(folder: Path) -> object:
    """The same over the view `counts` of the run."""
    with Run.open(folder / "run").database() as database:
        return database.rows(TOTALS.format(counts="counts"))


def plain_file(folder: Path) -> object:
    """The counts, in the order of their keys, into a Parquet file."""
    out = folder / "plain.parquet"
    with _plain(folder) as connection:
        sql = f"COPY ({_grouped(folder)} ORDER BY pair_key) TO '{out}' (COMPRESSION zstd)"
        return connection.execute(sql)


def plain_json(folder: Path) -> object:
    """The same into a file of JSON objects, one a line: DuckDB writes no single object."""
    with _plain(folder) as connection:
        sql = f"COPY ({_grouped(folder)} ORDER BY pair_key) TO '{folder / 'plain.json'}'"
        return connection.execute(sql)


def export_parquet(folder: Path) -> object:
    """`cit export RUN counts.parquet`."""
    return export_counts(Run.open(folder / "run"), folder / "counts.parquet")


def export_json(folder: Path) -> object:
    """`cit export RUN counts.json`."""
    return export_counts(Run.open(folder / "run"), folder / "counts.json")


if __name__ == "__main__":
    main()
