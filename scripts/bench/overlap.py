"""When an outer step's pairs can be trained on, and what `--ahead 1` makes of it.

python -m scripts.bench.overlap
python -m scripts.bench.overlap --work cit-demo --updates 50 --repeats 3 --json overlap.json

Trains the demo's recipe on its clip art, without evaluation, in each way in turn. What `cit demo`
has fetched and built is used, and the vision features of all images that the ways select are
cached by a first, untimed run of each.
"""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from cit_curate.engines.workers import available_cpus
from cit_curate.run.ledger import Run
from cit_train.config import RunConfig, replace_fields
from cit_train.outer_loop import train
from scripts.bench.side_by_side import Comparison, bench_parser, compare_ways, show
from scripts.bench.train_step import demo_config

MOMENTS = ("select", "first_shard", "first_batch", "last_shard")
# The outer step from which on moments count: the processes have started by then.
FIRST = 2


def ways_of(
    config: RunConfig, folder: Path, *, cores: int, threads: int
) -> dict[str, Callable[[], Run]]:
    """The exact mode on all cores and on some, and `--ahead 1` with processes on the others."""
    spare = max(1, cores - threads)
    ahead = replace_fields(config, ahead=1, ahead_workers=spare)
    ways = {
        f"exact, {_counted(number, 'thread', 's')}": partial(
            _trained, config, folder / f"exact-{number}", number
        )
        for number in (cores, threads)
    }
    name = f"ahead, {_counted(threads, 'thread', 's')} + {_counted(spare, 'process', 'es')}"
    return {**ways, name: partial(_trained, ahead, folder / "ahead", threads)}


def _counted(number: int, what: str, plural: str) -> str:
    return f"{number} {what}{plural if number != 1 else ''}"


def _trained(config: RunConfig, out: Path, threads: int) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    return train(replace_fields(config, threads=threads), out)


def moments(run: Run, *, first: int) -> dict[str, float]:
    """Median seconds from the start of an outer step to each of `MOMENTS`, from step `first` on."""
    lines = [line for line in run.metrics() if line["kind"] == "outer_step"]
    later = [line for line in lines if line["outer_step"] >= first]
    return {name: statistics.median(line[f"{name}_seconds"] for line in later) for name in MOMENTS}


def compare(
    ways: Mapping[str, Callable[[], Run]], *, updates: int, repeats: int, first: int = FIRST
) -> Comparison:
    """Time whole runs; the notes are the medians of the later outer steps of the last one.

    Args:
        ways: What to time, by name; the first is the baseline.
        updates: Of each run.
        repeats: How often each is timed.
        first: The outer step from which on moments count.
    """
    last: dict[str, Run] = {}

    def kept(name: str, way: Callable[[], Run]) -> None:
        last[name] = way()

    def notes(name: str) -> dict[str, str]:
        found = moments(last[name], first=first)
        return {f"{each.replace('_', ' ')} s": f"{found[each]:.2f}" for each in MOMENTS}

    timed = {name: partial(kept, name, way) for name, way in ways.items()}
    title = "training with and without --ahead 1"
    found = compare_ways(title, "updates", timed, updates, repeats=repeats, notes=notes)
    steps = max(len(run.commits()) for run in last.values())
    return replace(found, facts={"updates": updates, "outer steps": steps})


def main() -> None:
    """Run the benchmark."""
    parser = bench_parser(__doc__)
    parser.add_argument("--work", type=Path, help="folder with the demo's pool; a temporary one")
    parser.add_argument("--updates", type=int, default=50, help="updates of each run")
    cores = available_cpus()
    help_ = "threads that train while the other cores score ahead; half of them"
    parser.add_argument("--threads", type=int, default=max(1, cores // 2), help=help_)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        config = replace_fields(
            demo_config(options.work or Path(temporary) / "demo"),
            eval_data="",
            max_updates=options.updates,
        )
        least = FIRST * config.curate.curate_every + 1
        if options.updates < least:
            parser.error(f"--updates is {options.updates}; moments are told from {least} on")
        ways = ways_of(config, Path(temporary), cores=cores, threads=options.threads)
        show([compare(ways, updates=options.updates, repeats=options.repeats)], options.json)


if __name__ == "__main__":
    main()
