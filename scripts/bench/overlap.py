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
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cit_curate.engines.workers import available_cpus
from cit_curate.run.ledger import Run
from cit_train.config import RunConfig, replace_fields
from cit_train.outer_loop import train
from scripts.bench.side_by_side import Comparison, Timing, add_output, show, take_turns

MOMENTS = ("select", "first_shard", "first_batch", "last_shard")
# The outer step from which on moments count: the processes have started by then.
FIRST = 2


def demo_config(work: Path, *, updates: int) -> RunConfig:
    """The demo's recipe on its pool, built below `work` unless it is there."""
    from cit_curate.storage.cache_folder import cache_folder
    from cit_train.demo.assets import DEBIAN_ASSETS, fetch_deb
    from cit_train.demo.command import prepare

    def quiet(text: str) -> None:
        pass

    folders = {name: fetch_deb(name, cache_folder(), quiet) for name in DEBIAN_ASSETS}
    config = prepare(work, folders, quiet)
    return replace_fields(config, eval_data="", max_updates=updates)


def ways_of(
    config: RunConfig, folder: Path, *, cores: int, threads: int
) -> dict[str, Callable[[], Run]]:
    """The exact mode on all cores and on some, and `--ahead 1` with processes on the others."""
    ways: dict[str, Callable[[], Run]] = {}
    for number in dict.fromkeys((cores, threads)):
        told = f"exact, {_counted(number, 'thread')}"
        ways[told] = partial(_trained, config, folder / f"exact-{number}", number)
    spare = max(1, cores - threads)
    ahead = replace_fields(config, ahead=1, ahead_workers=spare)
    told = f"ahead, {_counted(threads, 'thread')} + {_counted(spare, 'process')}"
    ways[told] = partial(_trained, ahead, folder / "ahead", threads)
    return ways


def _counted(number: int, what: str) -> str:
    plural = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number} {what}{plural}"


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

    timed: dict[str, Any] = {name: partial(kept, name, way) for name, way in ways.items()}
    seconds = take_turns(timed, repeats=repeats)
    timings = [
        Timing(name, seconds[name], updates, _notes(moments(last[name], first=first)))
        for name in ways
    ]
    steps = {len(run.commits()) for run in last.values()}
    return Comparison(
        "training with and without --ahead 1",
        "updates",
        next(iter(ways)),
        tuple(timings),
        {"updates": updates, "outer steps": max(steps)},
    )


def _notes(found: Mapping[str, float]) -> dict[str, str]:
    return {f"{name.replace('_', ' ')} s": f"{seconds:.2f}" for name, seconds in found.items()}


def main(args: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, help="folder with the demo's pool; a temporary one")
    parser.add_argument("--updates", type=int, default=50, help="updates of each run")
    cores = available_cpus()
    help_ = "threads that train while the other cores score ahead; half of them"
    parser.add_argument("--threads", type=int, default=max(1, cores // 2), help=help_)
    add_output(parser)
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as temporary:
        config = demo_config(given.work or Path(temporary) / "demo", updates=given.updates)
        least = FIRST * config.curate.curate_every + 1
        if given.updates < least:
            parser.error(f"--updates is {given.updates}; moments are told from {least} on")
        ways = ways_of(config, Path(temporary), cores=cores, threads=given.threads)
        result = compare(ways, updates=given.updates, repeats=given.repeats)
    show([result], given.json)


if __name__ == "__main__":
    main()
