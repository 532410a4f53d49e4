"""The commands `cit query`, `cit export` and `cit report`."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.progress import TaskID

from cit_curate.config import (
    COUNT_SUFFIXES,
    QUERY_MAX_ROWS,
    QUERY_TIMEOUT_SECONDS,
    CsvGuard,
    ImageFormat,
)
from cit_curate.errors import ConfigError
from cit_curate.printing import print_json, show
from cit_curate.storage.durable import atomic_file, sweep_temporary
from cit_curate.storage.remote import remote_url
from cit_curate.storage.upload import check_empty, made_here
from cit_curate.terminal import count_and_rate, progress_bar

if TYPE_CHECKING:  # they import Arrow and DuckDB, too slow for `--help`
    from cit_curate.pool.mixture import PoolMixture
    from cit_curate.pool.pool import Pool

# Suffixes of names that are meant as a file; every other name is a folder.
_OTHER_FILES = (".npy", ".tar", ".tsv", ".txt", ".jsonl", ".gz", ".zip", ".xlsx", ".html")


def query(
    run: tyro.conf.Positional[Path],
    sql: tyro.conf.Positional[str],
    *,
    csv: bool = False,
    json: bool = False,
    parquet: Path | None = None,
    csv_guard: CsvGuard = "formulas",
    pool: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    timeout_seconds: float = QUERY_TIMEOUT_SECONDS,
    max_rows: int = QUERY_MAX_ROWS,
) -> None:
    """Ask a run in SQL: one SELECT over its views.

    The views are selections, used, rounds, near_misses, rejects, counts (pair_key, image_id,
    text_key, count) and pairs (of the pool); DESCRIBE selections shows its columns, which are those
    of the run's Parquet files. A running run shows its committed outer steps. The SQL reaches no
    file, network or setting: a guard against accidents and pasted SQL, not a server for strangers.

        cit query RUN "SELECT metadata_text, count(*) FROM selections GROUP BY 1 ORDER BY 2 DESC"

    Args:
        run: The run folder.
        sql: One SELECT statement.
        csv: Print CSV instead of a table.
        json: Print one JSON document: a list of objects.
        parquet: Write the result to this Parquet file.
        csv_guard: formulas = a text that a spreadsheet would run gets a ' in front, and a last
            column `guarded` says where; off = cells as they are.
        pool: The pool's folder; default the one the run was made from. Of several, once for each:
            --pool A --pool B, or --pool NAME:A when the run gave it another name.
        timeout_seconds: The time after which the query is stopped.
        max_rows: The number of rows above which the query is stopped.
    """
    if csv + json + (parquet is not None) > 1:
        raise ConfigError("--csv, --json and --parquet exclude each other; choose one")
    from cit_curate.pool.mixture import PoolMixture
    from cit_curate.run.ledger import Run
    from cit_curate.run.pools import run_pool
    from cit_curate.run.query_result import print_csv, print_table, python_values, unique_names

    opened = Run.open(run)
    source = run_pool(opened, pool)
    if source is not None and any(each.pool.is_remote for each in PoolMixture.of(source)):
        # SQL needs the whole pool here, so it is fetched only when the SQL may read it.
        source = _fetched(source) if "pairs" in sql.lower() else None
    with opened.database(source) as database:
        table = database.query(sql, timeout_seconds=timeout_seconds, max_rows=max_rows)
    if parquet is not None:
        import pyarrow.parquet as pq

        sweep_temporary(parquet.parent, below=False, name=parquet.name)
        with atomic_file(parquet) as temporary:
            pq.write_table(unique_names(table), temporary, compression="zstd")
        return
    if csv:
        print_csv(table, guard=csv_guard)
    elif json:
        named = unique_names(table)
        columns = map(python_values, named.columns)
        names = named.schema.names
        print_json([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])
    else:
        print_table(table)


def export(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    *,
    pool: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    pairs_per_shard: int = 1000,
    image_side: int | None = None,
    image_format: ImageFormat = "auto",
    csv_guard: CsvGuard = "formulas",
    json: bool = False,
) -> None:
    """Export what a run curated: FILE.json, FILE.parquet, FILE.csv, or a folder of WebDataset tars.

    The counts are how often training used each pair; in a run that only curated, how often it was
    selected.

        cit export RUN counts.json
        cit export RUN SHARDS

    Args:
        run: The run folder.
        out: A file for the counts, or a folder for pairs with their images.
        pool: The pool's folder; default the one the run was made from. Of several, once for each:
            --pool A --pool B, or --pool NAME:A when the run gave it another name.
        pairs_per_shard: Pairs in each tar.
        image_side: Shrink images to this shorter side, as JPEGs; smaller ones, and with 0 all, keep
            the pool's bytes. Left out, it is the run's --shard-image-side.
        image_format: The format of all images in the shards. auto = JPEG, PNG and WebP keep their
            bytes; others, such as GIF and BMP, which most readers of shards drop, become PNG.
        csv_guard: formulas = in a CSV, a text that a spreadsheet would run gets a ' in front, and
            the column `guarded` says where, for readers to take it off; off = cells as they are.
        json: Print one JSON document instead of a summary.
    """
    from cit_curate.run.exports.export import export_counts, export_webdataset
    from cit_curate.run.ledger import Run
    from cit_curate.run.paths import MANIFESTS
    from cit_curate.run.pools import run_pool

    if pairs_per_shard < 1:
        raise ConfigError(f"--pairs-per-shard is {pairs_per_shard}; it must be at least 1")
    if image_side is not None and image_side < 0:
        raise ConfigError(f"--image-side is {image_side}; it must not be negative")
    opened = Run.open(run)
    url = remote_url(out)
    source = run_pool(opened, pool)
    suffix = out.suffix.lower()
    close = difflib.get_close_matches(suffix, COUNT_SUFFIXES, n=1)
    if suffix in _OTHER_FILES or (close and suffix not in COUNT_SUFFIXES):
        hint = f"; did you mean {out.with_suffix(close[0])}?" if close else ""
        raise ConfigError(
            f"{out}: an export ends in {', '.join(COUNT_SUFFIXES)}, or is a folder for WebDataset"
            f"{hint}"
        )
    summary: dict[str, Any]
    name = url or str(out)
    if suffix in COUNT_SUFFIXES:
        with made_here(out) as local:
            num_pairs = export_counts(opened, local, pool=_fetched(source), csv_guard=csv_guard)
        summary = {"path": name, "num_pairs": num_pairs}
        lines = [f"{name}: {num_pairs:,} pairs"]
    else:
        if source is None:
            raise ConfigError(
                f"a WebDataset export needs the pool of {run}, which is not where its config.json "
                f"says; name it with --pool POOL, or export {name}.json"
            )
        if url is not None:
            check_empty(url)
        _fetched(source)
        with progress_bar() as progress:
            bar = progress.add_task("exporting", total=None, numbers="")

            def show_progress(done: int, total: int) -> None:
                seconds = progress.tasks[bar].elapsed
                numbers = count_and_rate(done, total, seconds, "pairs")
                progress.update(bar, completed=done, total=total, numbers=numbers)

            with made_here(out, last=f"{MANIFESTS}/pairs.json") as local:
                shards = export_webdataset(
                    opened,
                    source,
                    local,
                    pairs_per_shard=pairs_per_shard,
                    image_side=image_side,
                    image_format=image_format,
                    on_progress=show_progress,
                )
        summary = {
            "path": name,
            "num_pairs": shards.num_pairs,
            "num_shards": shards.num_shards,
            "rejects": dict(shards.rejects),
            "reencoded": shards.reencoded,
        }
        lines = [f"{name}: {shards.num_pairs:,} pairs in {shards.num_shards:,} shards"]
        lines += [
            f"re-encoded as {suffix}: {_counted(originals)}"
            for suffix, originals in shards.reencoded.items()
        ]
        rejected = f"{MANIFESTS}/rejects.parquet"
        lines += [f"set aside in {rejected}: {n:,} {why}" for why, n in shards.rejects.items()]
    show(summary, lines, as_json=json)


def report(
    run: tyro.conf.Positional[Path],
    *,
    out: Path | None = None,
    pool: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    json: bool = False,
) -> None:
    """Write one self-contained HTML page about a run: numbers, charts, and pictures of each class.

        cit report RUN

    Args:
        run: The run folder, finished or not.
        out: The page; default report.html in the run folder.
        pool: The pool's folder; default the one the run was made from. Of several, once for each:
            --pool A --pool B, or --pool NAME:A when the run gave it another name.
        json: Print one JSON document instead of a summary.
    """
    from cit_curate.run.ledger import Run
    from cit_curate.run.pools import run_pool
    from cit_curate.run.report.page import build_report

    opened = Run.open(run)
    page = out or run / "report.html"
    source = _fetched(run_pool(opened, pool))
    with made_here(page) as local:
        size = build_report(opened, source, local).stat().st_size
    name = remote_url(page) or str(page)
    show({"path": name, "bytes": size}, [f"{name}: {size / 1e6:,.1f} MB"], as_json=json)


def _counted(formats: Mapping[str, int]) -> str:
    first_frame = {"gif": " (the first frame)"}
    return ", ".join(f"{n:,} {name}{first_frame.get(name, '')}" for name, n in formats.items())


def _fetched(pools: "Pool | PoolMixture | None") -> "Pool | PoolMixture | None":
    """The pools, with all parts fetched to this machine for SQL."""
    from cit_curate.pool.mixture import PoolMixture

    if pools is not None:
        for each in PoolMixture.of(pools):
            _fetch(each.pool)
    return pools


def _fetch(pool: "Pool") -> None:
    with progress_bar() as progress:
        bar: list[TaskID] = []

        def show_progress(done: int, total: int) -> None:
            if not bar:
                bar.append(progress.add_task("fetching the pool", total=total, numbers=""))
            seconds = progress.tasks[0].elapsed
            numbers = count_and_rate(done // 10**6, total // 10**6, seconds, "MB")
            progress.update(bar[0], completed=done, numbers=numbers)

        pool.fetch(show_progress)
