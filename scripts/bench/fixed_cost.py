"""What an outer step costs beside embedding, and what opening costs, for pools of several sizes.

    python -m scripts.bench.fixed_cost [--rows 10_000 1_000_000 10_000_000] [--repeats 7]
        [--folder DIR] [--json FILE]

Pools of made-up pairs, two texts an image (a title and a tag), are written with the project's own
writers. Each is then curated in a process of its own, so that its memory is its own, by an encoder
whose vectors are drawn at random and cost next to nothing. An outer step scans 16,384 captions (a
few more where a small pool gives a pair twice) and keeps one in sixteen; the sizes take turns. The
first step of a pool also reads its first window, which then serves the next steps.

The second table is how long a process takes that only shows a command's help.
"""

import csv
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import pyarrow as pa

from cit_curate.config import CurateConfig, MetadataConfig
from cit_curate.curation.curator import Curator, write_scan
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import Float32, PoolCursor
from cit_curate.run.ledger import Commit, Run
from cit_curate.sources.columns import Columns
from cit_curate.text_encoder.texts import Texts
from scripts.bench.own_process import fresh_process, peak_memory, resident_memory
from scripts.bench.side_by_side import Comparison, Timing, bench_parser, compare_ways, in_turn, show

ROWS = (10_000, 1_000_000, 10_000_000)
# An outer step: one in `1 / MIN_RATIO` of the captions that it scans.
SCANNED = 16_384
MIN_RATIO = 1 / 16
NUM_ENTRIES, DIM = 1_000, 32
HELP = ("--help", "train --help", "train default --help", "curate --help", "pool build --help")
WORDS = tuple(f"word{number}" for number in range(0, 1_000, 40))
STAGES = ("read", "texts", "search", "rules", "ledger")

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One outer step: captions scanned, and seconds by stage.

    `texts` makes the texts that are scored; `rules` is all that no other stage has. `processor` is
    processor time of all of it, which other processes of the machine disturb less.
    """

    scanned: int
    read: float
    texts: float
    search: float
    rules: float
    ledger: float
    processor: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.read + self.texts + self.search + self.rules + self.ledger


class RandomEncoder:
    """Unit vectors that are drawn in turn, whatever the texts; `seconds` is what that took."""

    fingerprint = "random"
    device = "cpu"
    tokenizer_key = ""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._rng = np.random.default_rng(0)

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [texts, DIM], unit norm."""
        started = time.perf_counter()
        vectors = self._rng.standard_normal((len(texts), DIM), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.seconds += time.perf_counter() - started
        return vectors

    def embed_on_device(self, texts: Texts) -> Float32:
        """As `embed`."""
        return self.embed(texts.array)


def main() -> None:
    """Write the pools, curate them in turn, print."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="sizes of the pools")
    parser.add_argument("--folder", type=Path, help="pools are kept there, about 140 bytes a row")
    parser.set_defaults(repeats=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cit-fixed-cost-") as temporary:
        folder = options.folder or Path(temporary)
        pools = [made_pool(folder / f"pool-{rows}", rows) for rows in options.rows]
        outer_step = compare(pools, folder, repeats=options.repeats)
        show([outer_step, compare_help(options.repeats)], options.json)


def made_pool(folder: Path, num_rows: int) -> Path:
    """A pool of that many made-up pairs; one that is there already is taken as it is.

    Each image has two texts: a title of four words and a number, and four tags.
    """
    if folder.is_dir():
        return folder
    rng = random.Random(0)  # noqa: S311 - made-up captions
    with tempfile.TemporaryDirectory(prefix="cit-pairs-") as sources:
        table = Path(sources) / "pairs.csv"
        with table.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("image_id", "image", "title", "tag"))
            for image in range(num_rows // 2):
                words = rng.choices(WORDS, k=4)
                title, tags = f"{' '.join(words)} {image:08d}", ",".join(words)
                writer.writerow((f"{image:08d}", f"images/{image:08d}.jpg", title, tags))
        columns = Columns(image_id="image_id", image="image", text=("title", "tag"))
        return Pool.build([table], folder, columns=columns, allow_missing_images=True).path


def compare(pools: Sequence[Path], folder: Path, *, repeats: int) -> Comparison:
    """Outer steps over each pool, taken in turn by one process per pool."""
    with ExitStack() as stack:
        processes, opened = {}, {}
        for pool in pools:
            process = stack.enter_context(fresh_process())
            # Opening comes first, and alone: the others are not there yet, or wait.
            opened[pool.name] = process.submit(_open, pool, folder / f"run-{pool.name}").result()
            processes[pool.name] = process
        steps = {name: partial(_result, process, _next_step) for name, process in processes.items()}
        turns = in_turn(steps, repeats=repeats + 1)
        timings = []
        for name, process in processes.items():
            seconds, base = opened[name]
            resident, peak = (
                _result(process, each) - base for each in (resident_memory, peak_memory)
            )
            timings.append(_timing(name, seconds, turns[name], resident, peak))
    facts = {"captions scanned": SCANNED, "kept": MIN_RATIO, "metadata entries": NUM_ENTRIES}
    title = "An outer step without embedding"
    return Comparison(title, "captions", tuple(timings), facts)


def compare_help(repeats: int, commands: Sequence[str] = HELP) -> Comparison:
    """Cold processes that show the help of some commands; the baseline only starts Python."""
    arguments = {"python -c pass": ["-c", "pass"]} | {
        f"cit {command}": ["-m", "cit_train.cli", *command.split()] for command in commands
    }
    run = partial(subprocess.run, check=True, capture_output=True)
    ways = {name: partial(run, [sys.executable, *each]) for name, each in arguments.items()}
    found = compare_ways("Showing help", "processes", ways, 1, repeats=repeats)
    timings = (replace(each, notes={"ms": f"{1e3 * each.median:.0f}"}) for each in found.timings)
    return replace(found, timings=tuple(timings))


def _timing(
    name: str, opening: float, steps: Sequence[Step], resident: float, peak: float
) -> Timing:
    first, *later = steps

    def median_ms(stage: str) -> str:
        return f"{1e3 * median(getattr(step, stage) for step in later):.0f}"

    notes = {
        "opening s": f"{opening:.2f}",
        "first step s": f"{first.seconds:.2f}",
        "later step ms": median_ms("seconds"),
        **{f"{stage} ms": median_ms(stage) for stage in ("processor", *STAGES)},
        "resident MB": f"{resident:,.0f}",
        "peak MB": f"{peak:,.0f}",
    }
    rows = int(name.rpartition("-")[2])
    scanned = median(each.scanned for each in later)
    return Timing(f"{rows:,} rows", tuple(each.seconds for each in later), scanned, notes)


# The outer steps of a process that has opened a pool.
_steps: list[Iterator[Step]] = []


def _open(pool: Path, run_folder: Path) -> tuple[float, float]:
    """Open a pool in this process; the seconds that it takes, and the memory before."""
    metadata = run_folder.with_suffix(".txt")
    metadata.write_text("".join(f"entry {n}\n" for n in range(NUM_ENTRIES)))
    config = CurateConfig(threshold=1.0, min_ratio=MIN_RATIO, max_passes=16, index="exact")
    pa.array([""])  # Arrow looks for pandas now, once in a process: 0.4 s where it is installed
    base, started = resident_memory(), time.perf_counter()
    curator = Curator(PoolMixture.open(pool), MetadataConfig(metadata=str(metadata)), config)
    seconds = time.perf_counter() - started
    run = Run.create(run_folder, config={}, environment={}, overwrite=True)
    _steps.append(outer_steps(curator, run))
    return seconds, base


def _next_step() -> Step:
    return next(_steps[0])


def _result(process: Executor, call: Callable[[], T]) -> T:
    return process.submit(call).result()


def outer_steps(curator: Curator, run: Run) -> Iterator[Step]:
    """One outer step after the other, each committed to the run."""
    encoder = RandomEncoder()
    scores = curator.lane_scores(encoder, curator.refresh(encoder))
    cursors, outer_step = (PoolCursor(),), 0
    while True:
        embedding = encoder.seconds
        started, processor = time.perf_counter(), time.process_time()
        step = OuterStep(outer_step, update=0, encoder=encoder.fingerprint)
        (lane,) = curator.run(step, cursors, scores, num_pairs=int(SCANNED * MIN_RATIO))
        selected = time.perf_counter()
        files = write_scan(run, lane.scan, lane.rows)
        cursors = (lane.scan.cursor,)
        run.commit(Commit(outer_step=outer_step, update=0, cursors=cursors, files=tuple(files)))
        committed = time.perf_counter()
        totals = lane.scan.totals
        stages = totals.read_seconds + totals.embed_seconds + totals.search_seconds
        yield Step(
            scanned=totals.scanned,
            read=totals.read_seconds,
            texts=totals.embed_seconds - (encoder.seconds - embedding),
            search=totals.search_seconds,
            rules=selected - started - stages,
            ledger=committed - selected,
            processor=time.process_time() - processor - (encoder.seconds - embedding),
        )
        outer_step += 1


if __name__ == "__main__":
    main()
