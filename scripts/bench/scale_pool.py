"""Pools of several sizes from building to the report: time, memory and disk of each command.

    python -m scripts.bench.scale_pool --folder DIR [--captions 100000 1000000] --json FILE

Captions are those of `scripts.make_captions`, one an image. Each command is a process of its own.
The whole pool is curated with a text tower of one layer and random weights, whose cost does not
hide the rest: in one process, in two workers, killed and resumed, and on Ray. Then MiniLM curates
it by a cascade, for a bounded number of pairs, undisturbed and killed and resumed. All runs of a
kind must select the same bytes. The table shows by which power of the number of captions each cost
grows. Steps that are in FILE already are not repeated.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from cit_train.demo.tuxpaint import CLASSES
from scripts.bench.own_process import in_own_process
from scripts.bench.process_tree import Spent, spent_by
from scripts.bench.side_by_side import machine

MINILM = "package:minilm"
# The best 5 % of each batch, whatever a tower of random weights finds similar.
EXACT = ("--curation", "exact", "--max-pairs", "all", "--threshold", "1", "--min-ratio", "0.05")
ENGINES = {
    "exact, 1 process": ("--workers", "1"),
    "exact, 2 workers": ("--workers", "2"),
    "exact, killed": ("--workers", "2"),
    "exact, Ray, 2 actors": ("--engine", "ray", "--workers", "2"),
}
COUNTS = "SELECT metadata_text, count(*) FROM selections GROUP BY 1 ORDER BY 2 DESC"
BEST = (
    "SELECT s.similarity, s.metadata_text, p.caption FROM selections s JOIN pairs p "
    "USING (pair_key) ORDER BY s.similarity DESC, pair_key LIMIT 100"
)
# A cost that grows by a higher power than this is named below the table.
LINEAR = 1.05
# Smaller costs are mostly that of starting Python.
LEAST_SECONDS, LEAST_MB = 5.0, 200.0


@dataclass(frozen=True)
class Row:
    """A step over one pool: its cost, and the bytes of what it wrote."""

    captions: int
    step: str
    spent: Spent
    disk: int


class Bench:
    """The steps that were measured so far, which a file keeps."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder, self._file = folder, file
        self.rows: list[Row] = []
        if file.is_file():
            rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
            self.rows = [Row(**{**row, "spent": Spent(**row["spent"])}) for row in rows]

    def find(self, captions: int, step: str) -> Row | None:
        """The row of a step, if it was measured."""
        rows = (row for row in self.rows if (row.captions, row.step) == (captions, step))
        return next(rows, None)

    def measure(
        self,
        captions: int,
        step: str,
        command: Sequence[str],
        *,
        writes: Path | None = None,
        kill_after: float | None = None,
    ) -> Spent:
        """Run a step, unless it was measured before.

        Args:
            captions: The captions of the pool.
            step: The name of the step.
            command: Arguments of Python.
            writes: The file or folder that it makes.
            kill_after: See `spent_by`.
        """
        if (row := self.find(captions, step)) is not None:
            return row.spent
        log = self.folder / f"{captions}-{step.replace(', ', '-').replace(' ', '-')}.log"
        spent = spent_by([sys.executable, "-m", *command], log, kill_after=kill_after)
        row = Row(captions, step, spent, 0 if writes is None else disk_bytes(writes))
        self.rows.append(row)
        document = {"machine": machine(), "rows": [asdict(row) for row in self.rows]}
        self._file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        seconds = f"{spent.wall:,.1f} s, {spent.cpu:,.1f} s of processors"
        peak = f"{spent.parent:,.0f} + {spent.child:,.0f} MB, all {spent.tree:,.0f} MB"
        print(
            f"{captions:,} {step}: {seconds}, {peak}, {row.disk / 1e6:,.0f} MB written", flush=True
        )
        return spent


def main() -> None:
    """Run the steps, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--captions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, required=True, help="about 500 bytes a caption")
    parser.add_argument("--json", type=Path, required=True, help="the numbers, as they come")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--cascade-pairs", default="all", help="pairs of the cascade; 0: none")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    bench = Bench(options.folder, options.json)
    for captions in options.captions:
        pool = make_pool(bench, captions)
        ask(bench, captions, exact(bench, captions, pool, options.engines))
        if options.cascade_pairs != "0":
            cascade(bench, captions, pool, options.cascade_pairs)
    print(f"\n{table(bench.rows)}\n")
    for line in faster_than_linear(bench.rows):
        print(line)


def make_pool(bench: Bench, captions: int) -> Path:
    """A pool of so many captions, checked and tokenised."""
    sources, pool = bench.folder / f"captions-{captions}", bench.folder / f"pool-{captions}"
    measure = partial(bench.measure, captions)
    making = ("scripts.make_captions", "--captions", str(captions), "--out", str(sources))
    measure("make captions", making, writes=sources)
    columns = ("--image-id", "image_id", "--image", "url", "--text", "alt")
    measure("pool build", cit("pool", "build", sources, *columns, "--out", pool), writes=pool)
    shutil.rmtree(sources, ignore_errors=True)
    measure("pool info", cit("pool", "info", pool, "--json"))
    measure("pool verify", cit("pool", "verify", pool))
    tokenize = cit("pool", "tokenize", pool, "--text-encoder", MINILM)
    measure("pool tokenize", tokenize, writes=pool / "tokens")
    return pool


def exact(bench: Bench, captions: int, pool: Path, engines: Sequence[str]) -> Path:
    """A run over the whole pool, one of those that each engine made."""
    tower = bench.folder / "tower"
    if not tower.is_dir():
        in_own_process(write_tower, tower)
    runs, seconds = [], 0.0
    for step in engines:
        runs.append(bench.folder / f"{step.replace(', ', '-').replace(' ', '-')}-{captions}")
        command = curation(bench.folder, pool, runs[-1], tower, *EXACT, *ENGINES[step])
        if step == "exact, killed":
            bench.measure(captions, step, command, kill_after=0.6 * seconds)
            step = "exact, resumed"
        seconds = bench.measure(captions, step, command, writes=runs[-1]).wall
    check_same(*runs)
    return runs[0]


def write_tower(folder: Path) -> None:
    """Write a BERT of one layer and random weights, with MiniLM's tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    from cit_curate.text_encoder.load import load_tokenizer

    load_tokenizer(MINILM).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, vocab_size=30_522, initializer_range=0.5)
    BertModel(config).save_pretrained(folder)


def cascade(bench: Bench, captions: int, pool: Path, max_pairs: str) -> None:
    """Curate by a cascade; then again, killed at half of the time and resumed."""
    whole, again = bench.folder / f"cascade-{captions}", bench.folder / f"killed-{captions}"
    rules = ("--curation", "cascade", "--max-pairs", max_pairs)
    first, second = (curation(bench.folder, pool, out, MINILM, *rules) for out in (whole, again))
    spent = bench.measure(captions, "cascade", first, writes=whole)
    bench.measure(captions, "cascade, killed", second, kill_after=spent.wall / 2)
    bench.measure(captions, "cascade, resumed", second, writes=again)
    check_same(whole, again)


def ask(bench: Bench, captions: int, run: Path) -> None:
    """What is asked of a run."""
    measure = partial(bench.measure, captions)
    measure("query, counts", cit("query", run, COUNTS))
    measure("query, captions", cit("query", run, BEST))
    for suffix in ("json", "parquet", "csv"):
        out = bench.folder / f"export-{captions}.{suffix}"
        measure(f"export, {suffix}", cit("export", run, out), writes=out)
    page = bench.folder / f"report-{captions}.html"
    measure("report", cit("report", run, "--out", page), writes=page)


def cit(*arguments: str | Path) -> list[str]:
    """A `cit` command, as arguments of `python -m`."""
    return ["cit_train.cli", *map(str, arguments)]


def curation(folder: Path, pool: Path, out: Path, tower: str | Path, *flags: str) -> list[str]:
    """A `cit curate` for the demo's classes, on the CPU."""
    text = ("--text-encoder", tower, "--pooling", "mean", "--device", "cpu")
    return cit("curate", pool, "--metadata", folder / "classes.txt", *text, "--out", out, *flags)


def check_same(*runs: Path) -> None:
    """End the benchmark if runs selected different bytes."""
    names = ("selections", "near_misses", "rounds")
    of_runs = {
        run: [
            hashlib.sha256(path.read_bytes()).hexdigest()
            for name in names
            for path in sorted((run / name).rglob("*.parquet"))
        ]
        for run in runs
    }
    if len(set(map(tuple, of_runs.values()))) != 1:
        sys.exit(f"the selections differ: {of_runs}")


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: a row for each step, columns for each size, and the growth between them."""
    sizes = sorted({row.captions for row in rows})
    steps = list(dict.fromkeys(row.step for row in rows))
    of = {(row.captions, row.step): row for row in rows}
    pairs = list(pairwise(sizes))
    head = ["step"]
    for size in sizes:
        head += [f"{size:,}: s", "processor s", "peak MB", "largest child", "tree", "disk MB"]
    for first, second in pairs:
        head += [f"{first:,} to {second:,}: time ~ n^", "memory ~ n^"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for step in steps:
        cells = [step]
        for size in sizes:
            cells += _cells(of.get((size, step)))
        for first, second in pairs:
            one, other = of.get((first, step)), of.get((second, step))
            for cost in (_seconds, _memory):
                power = growth(one, other, cost) if one and other else None
                cells.append("" if power is None else f"{power:.2f}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def growth(one: Row, other: Row, cost: Callable[[Row], float]) -> float | None:
    """The power of the number of captions by which a cost grows; None = one of them is 0."""
    if not cost(one) or not cost(other):
        return None
    return math.log(cost(other) / cost(one)) / math.log(other.captions / one.captions)


def faster_than_linear(rows: Sequence[Row]) -> list[str]:
    """A line for each step whose time grew faster than its captions, between any two sizes."""
    lines = []
    for one in rows:
        larger = [row for row in rows if row.step == one.step and row.captions > one.captions]
        other = min(larger, key=lambda row: row.captions, default=None)
        if other is None or one.spent.killed:
            continue
        for what, cost, least in (("time", _seconds, LEAST_SECONDS), ("memory", _memory, LEAST_MB)):
            power = growth(one, other, cost)
            if power is not None and power > LINEAR and cost(other) > least:
                sizes = f"{one.captions:,} to {other.captions:,}"
                lines.append(f"{one.step}: {what} grows as n^{power:.2f} from {sizes}")
    return lines


def _seconds(row: Row) -> float:
    return row.spent.cpu


def _memory(row: Row) -> float:
    return row.spent.tree


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return [""] * 6
    spent = row.spent
    numbers = (spent.wall, spent.cpu, spent.parent, spent.child, spent.tree, row.disk / 1e6)
    return [f"{number:,.0f}" if number >= 100 else f"{number:.3g}" for number in numbers]


if __name__ == "__main__":
    main()
