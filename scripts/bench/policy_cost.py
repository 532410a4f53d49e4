"""What each policy costs in an outer step, beside plain CiT.

    python -m scripts.bench.policy_cost [--rows 100000] [--repeats 7] [--json FILE]

The pool and the encoder are those of `scripts.bench.fixed_cost`: made-up pairs, and vectors that
are drawn at random and cost next to nothing. Each policy curates in a process of its own; they take
turns. Milliseconds are of 16,384 scanned captions, without reading and embedding them; processor
milliseconds are of the whole step, and other work on the machine disturbs them less.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from cit_curate.config import CurateConfig, MetadataConfig
from cit_curate.curation.curator import Curator
from cit_curate.pool.mixture import PoolMixture
from cit_curate.run.ledger import Run
from scripts.bench.fixed_cost import (
    MIN_RATIO,
    NUM_ENTRIES,
    SCANNED,
    RandomEncoder,
    Step,
    made_pool,
    outer_steps,
)
from scripts.bench.own_process import fresh_process
from scripts.bench.side_by_side import Comparison, Timing, bench_parser, in_turn, show

SHARE = {"keep_ratio": MIN_RATIO}
EXCLUDED_KEYS = 100_000


def main() -> None:
    """Curate with each policy in turn, print."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="size of the pool")
    parser.set_defaults(repeats=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cit-policies-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        pool = made_pool(folder / f"pool-{options.rows}", options.rows)
        ways = policies(folder)
        processes = {name: stack.enter_context(fresh_process()) for name in ways}
        for number, (name, process) in enumerate(processes.items()):
            process.submit(_open, pool, folder / f"run-{number}", ways[name]).result()
        calls = {
            name: partial(lambda each: each.submit(_next_step).result(), process)
            for name, process in processes.items()
        }
        turns = in_turn(calls, repeats=options.repeats + 1)
    timings = tuple(_timing(name, steps[1:]) for name, steps in turns.items())
    facts = {"captions of a step": SCANNED, "kept": MIN_RATIO, "metadata entries": NUM_ENTRIES}
    show([Comparison("Policies in an outer step", "captions", timings, facts)], options.json)


def policies(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """The settings of each way, by its name; a list of keys is written to the folder."""
    keys = folder / "excluded.txt"
    keys.write_text("".join(f"{7 * number:08d}\n" for number in range(EXCLUDED_KEYS)))
    return {
        "plain CiT": {"threshold": 1.0, "min_ratio": MIN_RATIO},
        "--keep-ratio": SHARE,
        "--keep-ratio --balance 1.5": {**SHARE, "balance": 1.5},
        "--keep-ratio --anchor 0.5": {**SHARE, "anchor": 0.5},
        "all three": {**SHARE, "balance": 1.5, "anchor": 0.5},
        "--mix-random 0.2": {**SHARE, "mix_random": 0.2},
        f"--exclude {EXCLUDED_KEYS:,} keys": {**SHARE, "exclude": (str(keys),)},
        "--exclude PREDICATE": {**SHARE, "exclude": ("caption ILIKE '%word40 word80%'",)},
    }


def _timing(name: str, steps: Sequence[Step]) -> Timing:
    def of_a_step(stage: str) -> str:
        return (
            f"{median(1e3 * getattr(step, stage) * SCANNED / step.scanned for step in steps):.0f}"
        )

    notes = {
        f"{stage} ms": of_a_step(stage) for stage in ("search", "rules", "ledger", "processor")
    }
    seconds = tuple(each.seconds * SCANNED / each.scanned for each in steps)
    return Timing(name, seconds, SCANNED, notes)


# The outer steps of a process that has opened the pool.
_steps: list[Iterator[Step]] = []


def _open(pool: Path, run_folder: Path, fields: Mapping[str, Any]) -> None:
    metadata = run_folder.with_suffix(".txt")
    metadata.write_text("".join(f"entry {n}\n" for n in range(NUM_ENTRIES)))
    config = CurateConfig(max_passes=16, index="exact", **fields)
    curator = Curator(PoolMixture.open(pool), MetadataConfig(metadata=str(metadata)), config)
    curator.pairs_per_step = int(SCANNED * MIN_RATIO)
    if config.anchor:
        curator.hold_to(RandomEncoder())
    run = Run.create(run_folder, config={}, environment={}, overwrite=True)
    _steps.append(outer_steps(curator, run))


def _next_step() -> Step:
    return next(_steps[0])


if __name__ == "__main__":
    main()
