"""Counts over a long ledger, against plain DuckDB on the same Parquet files.

    python -m scripts.bench.counts [--rows 100000000] [--pairs 20000000] [--rows-a-file 100000]

A run is made up whose `used` rows name pairs of a pool at random. Each way runs in a process of its
own, so that its peak memory is its own; all have the same memory limit and spill to the same disk.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb

from cit_curate.run.exports.export import export_counts
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.paths import step_folder
from cit_curate.run.query import MAX_THREADS, MEMORY_LIMIT
from cit_curate.storage.durable import FileEntry
from scripts.bench.own_process import in_own_process
from scripts.bench.side_by_side import Comparison, Facts, Timing, bench_parser, in_turn, show

GROUPED = "SELECT pair_key, CAST(sum(times_used) AS BIGINT) AS count FROM {files} GROUP BY pair_key"
TOTALS = "SELECT count(*) AS pairs, sum(count) AS uses FROM {counts}"


def main() -> None:
    """Make the ledger, count it in every way, print."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000, help="rows of `used`")
    parser.add_argument("--pairs", type=int, default=20_000_000, help="pairs they are of")
    parser.add_argument("--rows-a-file", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the files go")
    parser.add_argument("--keep", action="store_true", help="leave the ledger there, or use it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cit-counts-", dir=options.folder) as made:
        folder = options.folder if options.keep else Path(made)
        if not (folder / "run").is_dir():
            write_ledger(folder / "run", options.rows, options.pairs, options.rows_a_file)
        facts = {"rows": options.rows, "files": -(-options.rows // options.rows_a_file)}
        show(compare(folder, facts, options.repeats), options.json)


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


def compare(folder: Path, facts: Facts, repeats: int) -> list[Comparison]:
    """The view, the export and the Python API, each beside the SQL that it stands for."""
    compared: list[tuple[str, dict[str, Callable[[Path], object]]]] = [
        ("Counting each pair's uses", {"DuckDB": plain_totals, "cit": view_totals}),
        ("Counts, in order, as a Parquet file", {"DuckDB": plain_file, "cit": export_parquet}),
        ("Counts, in order, as a JSON file", {"DuckDB": plain_json, "cit": export_json}),
    ]
    comparisons = []
    for title, ways in compared:
        apart = {name: partial(in_own_process, way, folder) for name, way in ways.items()}
        timings = tuple(
            Timing(
                name,
                tuple(each.seconds for each in runs),
                float(facts["rows"]),
                {"peak MB": f"{max(each.peak for each in runs):,.0f}"},
            )
            for name, runs in in_turn(apart, repeats=repeats).items()
        )
        comparisons.append(Comparison(title, "rows", timings, facts))
    return comparisons


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


def plain_file(folder: Path) -> None:
    """The counts, in the order of their keys, into a Parquet file."""
    _copy(folder, f"'{folder / 'plain.parquet'}' (COMPRESSION zstd)")


def plain_json(folder: Path) -> None:
    """The same into a file of JSON objects, one a line: DuckDB writes no single object."""
    _copy(folder, f"'{folder / 'plain.json'}'")


def _copy(folder: Path, target: str) -> None:
    with _plain(folder) as connection:
        connection.execute(f"COPY ({_grouped(folder)} ORDER BY pair_key) TO {target}")


def export_parquet(folder: Path) -> object:
    """`cit export RUN counts.parquet`."""
    return export_counts(Run.open(folder / "run"), folder / "counts.parquet")


def export_json(folder: Path) -> object:
    """`cit export RUN counts.json`."""
    return export_counts(Run.open(folder / "run"), folder / "counts.json")


if __name__ == "__main__":
    main()
