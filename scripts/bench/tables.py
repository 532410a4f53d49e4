"""Reading tables of text, against the plain loop of Python's csv module.

    python -m scripts.bench.tables [--rows 500000]

The same made-up rows as a TSV without quotes, with ten stray quotes, and as a CSV whose captions
are quoted. The plain loop chooses no columns, counts nothing and loses rows to stray quotes; beside
both stands the build of a whole pool.
"""

import csv
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cit_curate.pool.build.ingest import build_pool
from cit_curate.sources.columns import Columns
from cit_curate.sources.source import find_sources
from cit_curate.sources.text.table import open_table
from scripts.bench.side_by_side import Comparison, bench_parser, compare_ways, show

COLUMNS = Columns(image_id="id", text=("caption",))
NUM_STRAY = 10


def main() -> None:
    """Make the tables, read each in every way, print."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cit-tables-") as folder:
        tables = {
            "TSV": (_written(Path(folder) / "plain.tsv", options.rows), "\t"),
            "TSV, ten stray quotes": (_stray(Path(folder) / "stray.tsv", options.rows), "\t"),
            "CSV, quoted captions": (_quoted(Path(folder) / "quoted.csv", options.rows), ","),
        }
        show(
            [
                _compared(title, path, mark, options.rows, options.repeats)
                for title, (path, mark) in tables.items()
            ],
            options.json,
        )


def _compared(title: str, path: Path, mark: str, rows: int, repeats: int) -> Comparison:
    ways = {
        "csv module": partial(_plain, path, mark),
        "cit reads": partial(_read, path),
        "cit builds a pool": partial(_build, path),
    }
    return compare_ways(title, "rows", ways, rows, repeats=repeats, facts={"rows": rows})


def _plain(path: Path, mark: str) -> None:
    with path.open(encoding="utf-8", newline="") as stream:
        for _ in csv.reader(stream, delimiter=mark):
            pass


def _read(path: Path) -> None:
    reader = open_table(path, COLUMNS, path.suffix[1:])
    assert reader.read is not None
    for _ in reader.read():
        pass


def _build(path: Path) -> None:
    build_pool(find_sources([path]), path.with_suffix(".pool"), columns=COLUMNS, overwrite=True)


def _captions(rows: int) -> Iterator[str]:
    return (f"a paper kite over the harbour after the rain, number {row}" for row in range(rows))


def _written(path: Path, rows: int) -> Path:
    lines = (f"{row}\t{caption}\n" for row, caption in enumerate(_captions(rows)))
    path.write_text("id\tcaption\n" + "".join(lines), encoding="utf-8")
    return path


def _stray(path: Path, rows: int) -> Path:
    every = max(rows // NUM_STRAY, 1)
    lines = (
        f'{row}\t"{caption}\n' if row % every == every // 2 else f"{row}\t{caption}\n"
        for row, caption in enumerate(_captions(rows))
    )
    path.write_text("id\tcaption\n" + "".join(lines), encoding="utf-8")
    return path


def _quoted(path: Path, rows: int) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "caption"])
        writer.writerows(enumerate(_captions(rows)))
    return path


if __name__ == "__main__":
    main()
