"""Seconds from `cit train laptop` to its first update and its first evaluation, by stage.

    python -m scripts.bench.first_batch [--out FOLDER] [--repeats 3] [--json FILE]

The demo's pool and pictures (`cit demo --fetch-only`), an evaluation after 10 updates. Each run is
a process of its own, from the start of Python on: the plain loop, cit with its caches of vectors
and features empty, and cit again, with those that the run before has filled. The ways take turns.
"""

import functools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.bench.side_by_side import bench_parser, machine

UPDATES = 10
TO_UPDATE, TO_EVALUATION = "first update", "first evaluation"
REST = "the rest"
WAYS = ("plain loop", "caches empty", "caches full")

Seconds = Mapping[str, float]


def main() -> None:
    """Print the table."""
    parser = bench_parser(__doc__)
    parser.add_argument("--out", type=Path, help="folder for the demo's pool, kept for next time")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument(
        "--processor",
        action="store_true",
        help="processor seconds of all threads, which other work on the machine changes less",
    )
    parser.add_argument("--run", nargs=3, help="for the processes: way, folder and start")
    options = parser.parse_args()
    if options.run:
        way, folder, started = options.run
        run = _plain_run if way == WAYS[0] else _cit_run
        print(json.dumps(run(Path(folder), float(started))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        _prepare(folder)
        ways = WAYS[options.no_plain :]
        turns = [
            {way: _in_own_process(way, folder, options.processor) for way in ways}
            for _ in range(options.repeats)
        ]
        for name in ("run", "features", "pool/vectors"):
            shutil.rmtree(folder / name, ignore_errors=True)
    medians = {way: _medians([turn[way] for turn in turns]) for way in ways}
    unit = "processor seconds" if options.processor else "seconds"
    print(stage_table(medians, unit=unit, repeats=options.repeats))
    if options.json:
        document = {"machine": machine(), "turns": turns}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def stage_table(medians: Mapping[str, Seconds], *, unit: str, repeats: int) -> str:
    """The seconds of each way by stage, as a Markdown table."""
    stages = list(dict.fromkeys(stage for seconds in medians.values() for stage in seconds))
    rows = [["stage", *medians], ["---", *["---:"] * len(medians)]]
    for stage in stages:
        cells = [
            f"{seconds[stage]:.2f}" if stage in seconds else "" for seconds in medians.values()
        ]
        is_total = stage in (TO_UPDATE, TO_EVALUATION)
        rows.append([f"**{stage}**" if is_total else stage, *cells])
    for total in (TO_UPDATE, TO_EVALUATION):
        first = next(iter(medians.values()))[total]
        ratios = [f"{first / seconds[total]:.2f}" for seconds in medians.values()]
        rows.append([f"{total}, x {next(iter(medians))}", *ratios])
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"**First batch**, {unit} ({machine()}; {repeats} repeats)\n\n{lines}\n"


def _medians(turns: Sequence[Seconds]) -> Seconds:
    return {stage: statistics.median(turn[stage] for turn in turns) for stage in turns[0]}


def _prepare(folder: Path) -> None:
    from scripts.bench.train_step import demo_config

    demo_config(folder)


def _in_own_process(way: str, folder: Path, is_processor: bool) -> Seconds:
    shutil.rmtree(folder / "run", ignore_errors=True)
    if way == WAYS[1]:
        for name in ("features", "pool/vectors"):
            shutil.rmtree(folder / name, ignore_errors=True)
    command = [sys.executable, "-m", "scripts.bench.first_batch", "--run", way, str(folder)]
    done = subprocess.run(
        [*command, str(0 if is_processor else time.time())],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds: Seconds = json.loads(done.stdout.splitlines()[-1])
    print(way, {stage: round(each, 2) for stage, each in seconds.items()}, file=sys.stderr)
    return seconds


class Stages:
    """The seconds of the main thread by stage; a stage within another one is taken out of it."""

    def __init__(self, started: float) -> None:
        """Count from a moment, in `time.time`; 0 = processor seconds of this process."""
        self._clock = time.time if started else time.process_time
        self._started = started
        self.seconds = {"start and imports": self._clock() - started}
        self._inner: list[float] = []
        self._ends: dict[str, dict[str, float]] = {}

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Count the calls of a function or method, from now on."""
        function = getattr(owner, name)
        is_class_method = isinstance(owner, type) and isinstance(
            owner.__dict__.get(name), classmethod
        )

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)
            self._inner.append(0.0)
            before = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                whole = self._clock() - before
                self.add(stage, whole - self._inner.pop())
                if self._inner:
                    self._inner[-1] += whole

        setattr(owner, name, staticmethod(watched) if is_class_method else watched)

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def end(self, total: str) -> None:
        """A moment that is reached once: all seconds until then."""
        if total not in self._ends:
            self._ends[total] = {**self.seconds, total: self._clock() - self._started}

    def report(self) -> dict[str, float]:
        """The stages to the first update, then those from there to the first evaluation."""
        first, last = self._ends[TO_UPDATE], self._ends[TO_EVALUATION]
        before = sum(seconds for stage, seconds in first.items() if stage != TO_UPDATE)
        later = {
            f"then {stage}": seconds - first.get(stage, 0.0)
            for stage, seconds in last.items()
            if stage != TO_EVALUATION and seconds - first.get(stage, 0.0) > 0.005
        }
        rest = last[TO_EVALUATION] - first[TO_UPDATE] - sum(later.values())
        total = first.pop(TO_UPDATE)
        return {
            **first,
            REST: total - before,
            TO_UPDATE: total,
            **later,
            f"then {REST}": rest,
            TO_EVALUATION: last[TO_EVALUATION],
        }


def _flags(folder: Path) -> list[str]:
    return [
        *("--pool", str(folder / "pool"), "--metadata", str(folder / "classes.txt")),
        *("--eval-data", str(folder / "pictures"), "--eval-every", str(UPDATES)),
        *("--feature-cache", str(folder / "features"), "--prompts", "{}"),
        *("--max-updates", str(UPDATES)),
    ]


def _cit_run(folder: Path, started: float) -> Seconds:
    """`cit train laptop`, up to its first evaluation."""
    from cit_curate.importing import long_imports
    from cit_train import train_command

    with long_imports():
        from cit_train.loop import progress
        from cit_train.loop.watcher import Watcher

    stages = Stages(started)

    class Course(Watcher):
        def trained(self, state: object, report: object) -> None:
            stages.end(TO_UPDATE)

        def evaluated(self, state: object, evaluation: object) -> None:
            stages.end(TO_EVALUATION)

    class Watching:
        def __enter__(self) -> Watcher:
            return Course()

        def __exit__(self, *error: object) -> None: ...

    progress.watching = lambda *args, **kwargs: Watching()
    with long_imports():
        watched = cit_stages()
    for owner, name, stage in watched:
        stages.watch(owner, name, stage)
    train_command.main(["laptop", *_flags(folder), "--out", str(folder / "run"), "--json"])
    return stages.report()


def cit_stages() -> tuple[tuple[Any, str, str], ...]:
    """The functions of `cit train` that are timed: their owner, their name, and their stage."""
    from cit_curate.curation.curator import Curator
    from cit_train.evaluation import evaluator
    from cit_train.inner_loop.features import FeatureCache
    from cit_train.inner_loop.trainer import Trainer
    from cit_train.loop import inputs, session
    from cit_train.streaming.batches import BatchReader

    return (
        (inputs, "check_inputs", "pools and class names"),
        (session, "open_pools", "pools and class names"),
        (session, "_open_curator", "pools and class names"),
        (evaluator.Evaluator, "open", "pictures listed"),
        (session, "open_towers", "towers"),
        (session, "_open_run", "run folder"),
        (session, "_open_trainer", "trainer"),
        (Trainer, "text_encoder", "text encoder"),
        (Curator, "refresh", "class vectors"),
        (Curator, "sample", "sample"),
        (Curator, "run", "selection"),
        (BatchReader, "_wait_for_shard", "first shard"),
        (FeatureCache, "_compute", "vision features"),
        (Trainer, "step", "updates"),
        (evaluator, "pooled_images", "pictures encoded"),
        (evaluator, "evaluate", "classified"),
    )


def _plain_run(folder: Path, started: float) -> Seconds:
    """The plain loop, up to its first evaluation."""
    from cit_train.evaluation.evaluator import Evaluator
    from cit_train.recipes import laptop
    from cit_train.resolve import resolve
    from scripts.bench import plain_loop

    stages = Stages(started)
    for owner, name, stage in (
        (plain_loop, "write_captions", "pools and class names"),
        (plain_loop.PlainLoop, "__init__", "towers"),
        (plain_loop.PlainLoop, "pairs", "selection"),
        (plain_loop.PlainLoop, "step", "updates"),
        (Evaluator, "__call__", "pictures encoded"),
    ):
        stages.watch(owner, name, stage)
    config = resolve(laptop(), _flags(folder), prog="plain loop")
    with tempfile.TemporaryDirectory() as temporary:
        loop = plain_loop.PlainLoop(config, Path(temporary))
        evaluator = Evaluator.open(config.evaluate_as, config.text.max_text_length)
        assert evaluator is not None
        pairs, size = loop.pairs(curated=True), config.curate.batch_size
        for update in range(UPDATES):
            group = pairs[update * size : (update + 1) * size]
            loop.step(*plain_loop.columns(group), update)
            stages.end(TO_UPDATE)
        evaluator(loop.model, loop.tokenizer)
        stages.end(TO_EVALUATION)
    return stages.report()


if __name__ == "__main__":
    main()
