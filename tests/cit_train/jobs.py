"""Small jobs that write every kind of file; each may be killed anywhere and begun again.

A job is `job(world, out)`: it makes its result in `out`, or finishes what another try left there.
They are run in this process, or in one that is forked from a server, which takes no seconds.
"""

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from forked import Forked, start
from tiny import make_config
from tiny_runs import ledger_hashes, logged_updates, weights

from cit_curate.curation import curate, scan_journal
from cit_curate.pool.build.ingest import build_pool
from cit_curate.pool.pool import Pool
from cit_curate.pool.token_files import write_token_files
from cit_curate.run.exports.counts_import import import_counts
from cit_curate.run.exports.export import export_counts, export_webdataset
from cit_curate.run.ledger import Run
from cit_curate.run.subset import subset_pool
from cit_curate.sources.columns import Columns
from cit_curate.sources.source import yfcc_source
from cit_curate.sources.yfcc.format import COLUMNS
from cit_curate.sources.yfcc.source import YfccSource
from cit_curate.storage.vector_cache import VectorCache
from cit_curate.text_encoder.load import load_tokenizer
from cit_curate.text_encoder.tokenizer import encode, tokenizer_key
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.watcher import StepNumbers, Watcher
from cit_train.outer_loop import train

Job = Callable[[Path, Path], None]

# 2 outer steps of 3 updates, saved in their middles at 2 and 5, evaluated at 2, 4 and 6.
FIELDS: dict[str, Any] = {
    "curate_every": 3,
    "eval_every": 2,
    "save_every": 2,
    "vision_features": "cached",
    "cached_views": 2,
}


def training(world: Path, out: Path) -> None:
    """`cit train … --resume`."""
    train(make_config(world, **FIELDS), out / "run", resume=True)


def long_training(world: Path, out: Path) -> None:
    """Many short outer steps; each commit is told in a line of OUT/told once it is on the disk."""

    class Teller(Watcher):
        def committed(self, state: TrainState, numbers: StepNumbers) -> None:
            with (out / "told").open("a") as stream:
                stream.write(f"{state.outer_step}\n")

    fields = {"curate_every": 1, "max_updates": 8, "eval_data": "", "save_every": 1}
    config = make_config(world, batch_size=4, pairs_per_shard=2, **fields)
    train(config, out / "run", resume=True, watcher=Teller())


def curating(world: Path, out: Path) -> None:
    """`cit curate` of a scan that is long enough to keep its scores until the run is there."""
    config = make_config(world)
    if not (out / "run").exists():
        pool = Pool.open(world / "data" / "pool")
        inputs = (pool, config.metadata, config.text, config.curate, out / "run")
        with mock.patch.object(curate, "STAGED_CAPTIONS", 0):
            curate.curate(*inputs, num_pairs=config.budget, device="cpu")


def cascading(world: Path, out: Path) -> None:
    """`cit curate --curation cascade`, which saves its scan after every batch."""
    config = make_config(world)
    if not (out / "run").exists():
        pool = Pool.open(world / "data" / "pool")
        rules = replace(config.curate, curation="cascade")
        inputs = (pool, config.metadata, config.text, rules, out / "run")
        with (
            mock.patch.object(curate, "STAGED_CAPTIONS", 0),
            mock.patch.object(scan_journal, "SAVE_SECONDS", 0.0),
        ):
            curate.curate(*inputs, num_pairs=config.budget, device="cpu")


def embedding(world: Path, out: Path) -> None:
    """`cit curate`, which keeps the vectors of what it embeds."""
    config = make_config(world)
    if not (out / "run").exists():
        pool, kept = (
            Pool.open(world / "data" / "pool"),
            VectorCache(out / "vectors", max_bytes=None),
        )
        inputs = (pool, config.metadata, config.text, config.curate, out / "run")
        with mock.patch.object(curate, "vectors_beside", return_value=kept):
            curate.curate(*inputs, num_pairs=config.budget, device="cpu")


def pooling(world: Path, out: Path) -> None:
    """`cit pool build`, which also finishes a pool that lacks its catalog."""
    if not (out / "pool" / "pool.duckdb").exists():
        columns = Columns(image_id="image_id", image="image", text=("title", "tag"))
        Pool.build([world / "data" / "pairs.csv"], out / "pool", columns=columns)


def pooling_yfcc(world: Path, out: Path) -> None:
    """`cit pool build --format yfcc100m`, likewise."""
    metadata, ids = world / "yfcc.txt", world / "yfcc.npy"
    if not (out / "pool" / "pool.duckdb").exists():
        lists = {"image_ids": ids, "range_bytes": 20_000}
        source = yfcc_source(YfccSource(format="yfcc100m", metadata=metadata, **lists))
        build_pool([source], out / "pool", columns=None, clean="yfcc")


def exporting(world: Path, out: Path) -> None:
    """`cit export` of counts and of pairs with images, from the run in the world."""
    run, pool = Run.open(world / "exported" / "run"), Pool.open(world / "data" / "pool")
    export_counts(run, out / "counts.json")
    if not (out / "pairs").exists():
        export_webdataset(run, pool, out / "pairs", pairs_per_shard=16)


def make_world(folder: Path) -> Path:
    """The tiny world, YFCC's lists beside it, and a run to export."""
    make_config(folder)
    cells = {name: f"{name} of it" for name in COLUMNS} | {"user_tags": "a,b"}
    lines = ["\t".join({**cells, "line_number": str(n)}.values()) for n in range(200)]
    (folder / "yfcc.txt").write_text("\n".join([*lines, ""]))
    np.save(folder / "yfcc.npy", np.arange(150, dtype=np.int64))
    curating(folder, folder / "exported")
    export_counts(Run.open(folder / "exported" / "run"), folder / "counts.json")
    return folder


def importing(world: Path, out: Path) -> None:
    """`cit import-counts`."""
    if not (out / "run").exists():
        import_counts(world / "counts.json", Pool.open(world / "data" / "pool"), out / "run")


def narrowing(world: Path, out: Path) -> None:
    """The pool of `cit train --selection RUN`."""
    run, pool = Run.open(world / "exported" / "run"), Pool.open(world / "data" / "pool")
    subset_pool(pool, out / "pool", run=run)


def tokenizing(world: Path, out: Path) -> None:
    """`cit pool tokenize`, of a copy of the pool in the world."""
    if not (out / "pool").exists():
        shutil.copytree(world / "data" / "pool", out / "pool")
    pool, tokenizer = Pool.open(out / "pool"), load_tokenizer(str(world / "text"))
    key = tokenizer_key(tokenizer, 32)
    if pool.token_files(key) is None:
        write_token_files(pool.path, pool.manifest, key, partial(encode, tokenizer, cut_to=32))


# The catalog's bytes are DuckDB's; logs and environment tell of times and places; and a job that is
# killed when its result is there leaves what was read or scored beside it.
# The lock of a killed job stays until another one needs it. Vectors are kept where there is room.
_UNEQUAL = re.compile(
    r"pool\.duckdb|metrics\.jsonl|(environment|head)\.json|^\.(staging-|[^/]*\.lock$)|^vectors/"
)

JOBS: Mapping[str, Job] = {
    job.__name__: job
    for job in (
        *(training, long_training, curating, cascading, embedding, pooling, pooling_yfcc),
        *(exporting, importing, narrowing, tokenizing),
    )
}


def result_of(out: Path) -> dict[str, object]:
    """What must be equal, however often a job was killed: bytes, weights, updates."""
    if (out / "run" / "checkpoints").exists():
        found = {name: value.numpy().tobytes() for name, value in weights(out / "run").items()}
        return {**ledger_hashes(out / "run"), **found, "log": logged_updates(out / "run")}
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not _UNEQUAL.search(path.relative_to(out).as_posix())
    }


def start_job(name: str, world: Path, out: Path, **environment: str) -> Forked:
    """A job in a process of its own; what it says goes to a file beside `out`."""
    with out.with_name(f"{out.name}.stderr").open("ab") as stderr:
        return start(
            "jobs:main", name, world, out, environment=environment, stdout=stderr, stderr=stderr
        )


def run_job(name: str, world: Path, out: Path, **environment: str) -> int | None:
    """As `start_job`; gives the exit code, None for a job that takes a minute. For many threads."""
    process = start_job(name, world, out, **environment)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(60)
    return process.returncode


def main() -> None:
    """Run the job that the arguments name: NAME WORLD OUT."""
    name, world, out = sys.argv[1:]
    JOBS[name](Path(world), Path(out))
