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

import argparse
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scripts.bench.side_by_side import Comparison, Timing, add_output, show, take_turns

if TYPE_CHECKING:  # the processes that curate import them, and `--help` is not slowed down
    from cit_curate.curation.curator import Curator
    from cit_curate.records import Float32
    from cit_curate.run.ledger import Run
    from cit_curate.text_encoder.texts import Texts

ROWS = (10_000, 1_000_000, 10_000_000)
# An outer step: one in `1 / MIN_RATIO` of the captions that it scans.
SCANNED = 16_384
MIN_RATIO = 1 / 16
NUM_ENTRIES, DIM = 1_000, 32
CHUNK_ROWS = 262_144
HELP = ("--help", "train --help", "train default --help", "curate --help", "pool build --help")
WORDS = tuple(f"word{number}" for number in range(0, 1_000, 40))


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

    def embed(self, texts: Sequence[str]) -> "Float32":
        """float32 [texts, DIM], unit norm."""
        started = time.perf_counter()
        vectors = self._rng.standard_normal((len(texts), DIM), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.seconds += time.perf_counter() - started
        return vectors

    def embed_on_device(self, texts: "Texts") -> "Float32":
        """As `embed`."""
        return self.embed(texts.array)


def main() -> None:
    """Write the pools, curate them in turn, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="sizes of the pools")
    parser.add_argument("--folder", type=Path, help="pools are kept there, about 70 bytes a row")
    add_output(parser)
    parser.set_defaults(repeats=7)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="cit-fixed-cost-"))
    try:
        pools = [made_pool(folder / f"pool-{rows}", rows) for rows in asked.rows]
        tables = [compare(pools, folder, repeats=asked.repeats), compare_help(asked.repeats)]
        show(tables, asked.json)
    finally:
        if asked.folder is None:
            shutil.rmtree(folder)


def made_pool(folder: Path, num_rows: int) -> Path:
    """A pool of that many made-up pairs; one that is there already is taken as it is."""
    from cit_curate.pool import format as pool_format
    from cit_curate.pool.parts import cut_groups, write_parts, write_rejects

    if (folder / pool_format.MANIFEST_NAME).is_file():
        return folder
    folder.mkdir(parents=True)
    groups = cut_groups(_pairs(num_rows), pool_format.group_rows(num_rows))
    written = write_parts(groups, folder, pool_format.pair_schema({}))
    manifest = pool_format.PoolManifest(
        name=folder.name,
        fingerprint=pool_format.parts_fingerprint(written.parts),
        cleaning="none",
        columns={},
        num_pairs=written.num_pairs,
        num_images=written.num_images,
        num_with_image=written.num_with_image,
        num_records=num_rows,
        text_keys=dict(written.text_keys),
        rejects={},
        sources=(),
        parts=tuple(written.parts),
        reject_parts=write_rejects((), folder),
    )
    pool_format.write_manifest(folder, manifest)
    return folder


def _pairs(num_rows: int) -> Iterator[pa.Table]:
    """Two texts of each image: a title of four words, and four tags."""
    words = pa.array(WORDS)
    for start in range(0, num_rows, CHUNK_ROWS):
        rows = np.arange(start, min(start + CHUNK_ROWS, num_rows), dtype=np.int64)
        drawn = np.random.default_rng(start).integers(len(WORDS), size=(4, len(rows)))
        number = pc.utf8_lpad(pa.array(rows // 2).cast(pa.string()), 8, "0")
        chosen = [words.take(pa.array(each)) for each in drawn]
        is_tag = pa.array(rows % 2 == 1)
        title = pc.binary_join_element_wise(*chosen, number, " ")
        tags = pc.binary_join_element_wise(*chosen, ",")
        yield pa.table(
            {
                "image_id": number,
                "text_key": pc.if_else(is_tag, "tag", "title"),
                "caption": pc.if_else(is_tag, tags, title),
                "image_uri": pc.binary_join_element_wise("images/", number, ".jpg", ""),
                "source": pa.repeat("made-up", len(rows)),
                "caption_hash": pa.array(rows.astype(np.uint64)),
                "text_fixed": pa.repeat(False, len(rows)),
            }
        )


def compare(pools: Sequence[Path], folder: Path, *, repeats: int) -> Comparison:
    """Outer steps over each pool, taken in turn by one process per pool."""
    spawn = multiprocessing.get_context("spawn")
    children = []
    for pool in pools:
        here, there = spawn.Pipe()
        process = spawn.Process(target=_curate, args=(there, pool, folder / f"run-{pool.name}"))
        process.start()
        there.close()
        # Opening comes first, and alone: the others are not there yet, or wait.
        children.append((process, here, float(here.recv())))
    try:
        turns = [[_step(pipe) for _, pipe, _ in children] for _ in range(repeats + 1)]
        memory = [_memory(pipe) for _, pipe, _ in children]
    finally:
        for process, pipe, _ in children:
            pipe.close()
            process.join()
    timings = [
        _timing(pool, opening, steps, peak)
        for pool, (_, _, opening), steps, peak in zip(
            pools, children, zip(*turns, strict=True), memory, strict=True
        )
    ]
    facts = {"captions scanned": SCANNED, "kept": MIN_RATIO, "metadata entries": NUM_ENTRIES}
    title = "An outer step without embedding"
    return Comparison(title, "captions", timings[0].name, tuple(timings), facts)


def compare_help(repeats: int, commands: Sequence[str] = HELP) -> Comparison:
    """Cold processes that show the help of some commands; the baseline only starts Python."""
    ways: dict[str, Callable[[], object]] = {
        "python -c pass": partial(_process, ["-c", "pass"]),
        **{
            f"cit {command}": partial(_process, ["-m", "cit_train.cli", *command.split()])
            for command in commands
        },
    }
    seconds = take_turns(ways, repeats=repeats)
    timings = tuple(
        Timing(name, each, 1, {"ms": f"{1e3 * median(each):.0f}"}) for name, each in seconds.items()
    )
    return Comparison("Showing help", "processes", timings[0].name, timings)


def _process(args: Sequence[str]) -> None:
    subprocess.run([sys.executable, *args], check=True, capture_output=True)


def _timing(
    pool: Path, opening: float, steps: tuple[Step, ...], memory: tuple[float, float]
) -> Timing:
    first, later = steps[0], steps[1:]
    stages = ("read", "texts", "search", "rules", "ledger")
    notes = {
        "opening s": f"{opening:.2f}",
        "first step s": f"{first.seconds:.2f}",
        "later step ms": f"{1e3 * median(each.seconds for each in later):.0f}",
        "processor ms": f"{1e3 * median(each.processor for each in later):.0f}",
        **{f"{name} ms": f"{1e3 * median(getattr(s, name) for s in later):.0f}" for name in stages},
        "resident MB": f"{memory[0]:,.0f}",
        "peak MB": f"{memory[1]:,.0f}",
    }
    rows = int(pool.name.rpartition("-")[2])
    scanned = median(each.scanned for each in later)
    return Timing(f"{rows:,} rows", tuple(each.seconds for each in later), scanned, notes)


def _step(pipe: Connection) -> Step:
    pipe.send("step")
    return Step(**pipe.recv())


def _memory(pipe: Connection) -> tuple[float, float]:
    pipe.send("memory")
    resident, peak = pipe.recv()
    return resident, peak


def _curate(pipe: Connection, pool: Path, run_folder: Path) -> None:
    """Open the pool, then an outer step per question; memory is told beyond what imports take."""
    from cit_curate.config import CurateConfig, MetadataConfig
    from cit_curate.curation.curator import Curator
    from cit_curate.pool.mixture import PoolMixture
    from cit_curate.run.ledger import Run

    metadata = run_folder.with_suffix(".txt")
    metadata.write_text("".join(f"entry {n}\n" for n in range(NUM_ENTRIES)))
    config = CurateConfig(threshold=1.0, min_ratio=MIN_RATIO, max_passes=16, index="exact")
    pa.array([""])  # Arrow looks for pandas now, once in a process: 0.4 s where it is installed
    base = _resident_mb()
    started = time.perf_counter()
    curator = Curator(PoolMixture.open(pool), MetadataConfig(metadata=str(metadata)), config)
    pipe.send(time.perf_counter() - started)
    run = Run.create(run_folder, config={}, environment={}, overwrite=True)
    steps = outer_steps(curator, run)
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if asked == "step":
            pipe.send(asdict(next(steps)))
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            pipe.send((_resident_mb() - base, peak - base))


def outer_steps(curator: "Curator", run: "Run") -> Iterator[Step]:
    """One outer step after the other, each committed to the run."""
    from cit_curate.curation.curator import write_scan
    from cit_curate.curation.lane_scan import OuterStep
    from cit_curate.records import PoolCursor
    from cit_curate.run.ledger import Commit

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


def _resident_mb() -> float:
    """Memory of this process that is in RAM now; where the system does not tell, the peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
