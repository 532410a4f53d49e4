"""Seconds of the demo until it is as good as it gets without curation.

    python -m scripts.bench.end_to_end [--out FOLDER] [--updates 50] [--json FILE]

The plain loop trains on uncurated pairs; its last accuracy is what the others have to reach: the
plain loop with curation, and cit, with an empty and a full feature cache. Each run starts at its
beginning, models loaded from disk; the time of evaluations, which all need, is left out.
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cit_train.config import RunConfig, replace_fields
from cit_train.evaluation.evaluator import Evaluator
from cit_train.evaluation.zero_shot import Evaluation
from cit_train.inner_loop.trainer import TrainState, UpdateReport
from cit_train.loop.watcher import Watcher
from cit_train.outer_loop import train
from scripts.bench.plain_loop import PlainLoop, columns
from scripts.bench.side_by_side import Comparison, Facts, Timing, bench_parser, show
from scripts.bench.train_step import demo_config

OPTIONS: dict[str, Any] = {"fused_adamw": True, "text_buckets": 4}


def main() -> None:
    """Print the table."""
    parser = bench_parser(__doc__)
    parser.add_argument("--out", type=Path, help="folder for the demo's pool, kept for next time")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--eval-every", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        config = replace_fields(
            demo_config(options.out or Path(temporary)),
            max_updates=options.updates,
            eval_every=options.eval_every,
        )
        runs = [compare(config, Path(temporary) / f"{n}", n) for n in range(options.repeats)]
        show(runs, options.json)


@dataclass
class Course(Watcher):
    """Accuracy over the seconds of a run, evaluations left out.

    Attributes:
        points: Update, seconds and mean per class of each evaluation.
    """

    started: float = field(default_factory=time.perf_counter)
    points: list[tuple[int, float, float]] = field(default_factory=list)
    _left_out: float = 0.0
    _trained: float = 0.0

    def trained(self, state: TrainState, report: UpdateReport) -> None:
        """An evaluation, if one follows, begins."""
        self._trained = time.perf_counter()

    def evaluated(self, state: TrainState, evaluation: Evaluation) -> None:
        """It has ended."""
        self.add(state.update, evaluation.mean_per_class, self._trained)

    def add(self, update: int, accuracy: float, before: float) -> None:
        """Note an evaluation that began at a time."""
        self.points.append((update, before - self.started - self._left_out, accuracy))
        self._left_out += time.perf_counter() - before

    def until(self, accuracy: float) -> tuple[int, float, float] | None:
        """The first evaluation that is at least so good."""
        return next((point for point in self.points if point[2] >= accuracy), None)


def compare(config: RunConfig, folder: Path, seed: int) -> Comparison:
    """All ways of one seed."""
    folder.mkdir(parents=True)
    config = replace_fields(config, seed=seed, feature_cache=str(folder / "features"))
    uncurated = plain_course(config, folder, curated=False, target=None)
    goal = uncurated.points[-1]
    courses = {
        "plain loop, uncurated": uncurated,
        "plain loop, curated": plain_course(config, folder, curated=True, target=goal[2]),
        "cit, empty cache": cit_course(config, folder / "empty"),
        "cit, full cache": cit_course(config, folder / "full"),
    }
    faster = replace_fields(config, **OPTIONS)
    again = replace_fields(faster, feature_cache=str(folder / "features-again"))
    courses["cit, empty cache, options"] = cit_course(again, folder / "options-empty")
    courses["cit, full cache, options"] = cit_course(faster, folder / "options-full")
    timings = []
    for name, course in courses.items():
        # Of the uncurated loop the last evaluation is the goal, though one before may be as good.
        reached = goal if course is uncurated else course.until(goal[2])
        last = course.points[-1]
        notes = {
            "update": str(reached[0]) if reached else "never",
            "mean per class %": f"{reached[2] if reached else last[2]:.1f}",
            "last %": f"{last[2]:.1f} at {last[0]}",
            "seconds": f"{reached[1] if reached else last[1]:.1f}",
        }
        timings.append(Timing(name, (reached[1] if reached else last[1],), 1, notes))
    facts: Facts = {"seed": seed, "goal %": f"{goal[2]:.1f}"}
    return Comparison("Demo, to the uncurated accuracy", "runs", tuple(timings), facts)


def cit_course(config: RunConfig, out: Path) -> Course:
    """A whole run of `cit train`."""
    course = Course()
    train(config, out, watcher=course)
    return course


def plain_course(config: RunConfig, folder: Path, *, curated: bool, target: float | None) -> Course:
    """The plain loop, to its end, or until an evaluation is at least so good."""
    course = Course()
    loop = PlainLoop(config, folder)
    evaluator = Evaluator.open(config.evaluate_as, config.text.max_text_length)
    assert evaluator is not None
    update, size, total = 0, config.curate.batch_size, config.train.max_updates
    while True:
        pairs = loop.pairs(curated=curated)
        for start in range(0, len(pairs), size):
            loop.step(*columns(pairs[start : start + size]), update)
            update += 1
            if update % config.evaluation.eval_every == 0 or update == total:
                before = time.perf_counter()
                accuracy = evaluator(loop.model, loop.tokenizer).mean_per_class
                course.add(update, accuracy, before)
                if update == total or (target is not None and accuracy >= target):
                    return course


if __name__ == "__main__":
    main()
