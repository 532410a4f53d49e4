"""The command `cit import-counts`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from cit_curate.config import MAX_MISSING_RATIO, MAX_REJECT_RATIO
from cit_curate.printing import print_json
from cit_curate.terminal import print_line, progress_bar

if TYPE_CHECKING:  # they import Arrow and DuckDB, too slow for `--help`
    from cit_curate.run.exports.counts_import import ImportedCounts, Progress


def import_counts(
    file: tyro.conf.Positional[Path],
    pool: Path,
    out: Path,
    *,
    max_missing_ratio: float = MAX_MISSING_RATIO,
    max_reject_ratio: float = MAX_REJECT_RATIO,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Turn a published curated dataset into a run: to train on, to query, to export again.

    FILE is a JSON object of pair keys and counts, {"00001234_tag": 3, ...}, as `cit export` and
    the original write it; or a CSV or Parquet file with the columns pair_key and count. The run has
    the pairs that are in the pool, in the pool's order. The others are in its view `rejects`.

        cit import-counts counts.json --pool POOL --out RUN
        cit query RUN "SELECT text_key, count(*), sum(count) FROM counts GROUP BY 1"
        cit export RUN SHARDS

    Args:
        file: The counts, as .json, .csv or .parquet.
        pool: The folder made by `cit pool build`.
        out: The folder of the new run.
        max_missing_ratio: The largest share of the file's pairs that the pool may lack.
        max_reject_ratio: The largest share of malformed or repeated entries.
        overwrite: Replace the run at --out.
        json: Print one JSON document instead of a summary.
    """
    from cit_curate.pool.pool import Pool
    from cit_curate.run.exports.counts_import import import_counts as import_file

    opened = Pool.open(pool)
    with _progress_bars() as show_progress:
        imported = import_file(
            file,
            opened,
            out,
            max_missing_ratio=max_missing_ratio,
            max_reject_ratio=max_reject_ratio,
            overwrite=overwrite,
            progress=show_progress,
        )
    _show(imported, as_json=json)


def _show(imported: "ImportedCounts", *, as_json: bool) -> None:
    summary: dict[str, Any] = {
        "path": str(imported.run.path),
        "num_entries": imported.num_entries,
        "num_pairs": imported.num_pairs,
        "num_uses": imported.num_uses,
        "num_missing": imported.num_missing,
        "rejects": imported.rejects,
    }
    if as_json:
        print_json(summary)
        return
    lines = [
        f"{imported.run.path}: {imported.num_pairs:,} of {imported.num_entries:,} entries are "
        f"pairs of the pool, used {imported.num_uses:,} times"
    ]
    if imported.rejects:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in imported.rejects.items())
        lines.append(f"set aside: {reasons} (the view rejects has each, with its entry)")
    for line in lines:
        print_line(line)


@contextmanager
def _progress_bars() -> "Iterator[Progress]":
    """A progress bar for each stage, on stderr, only in a terminal."""
    with progress_bar() as progress:
        bars: dict[str, Any] = {}

        def show_progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total, numbers="")
            bar = bars[what]
            seconds = max(progress.tasks[bar].elapsed or 0.0, 1e-3)
            scale, unit = (1e6, "MB") if what == "reading" else (1.0, "rows")
            numbers = f"{done / scale:,.0f} {unit}, {done / scale / seconds:,.0f} {unit}/s"
            shown = numbers if done else ""
            # Matching has no measure: its bar only pulses.
            progress.update(bar, completed=done, total=total if done else None, numbers=shown)

        yield show_progress
