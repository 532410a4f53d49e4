"""Sweeps: functions that make the configs of several runs from one, with their command."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cit_curate.errors import ConfigError
from cit_curate.metadata.tasks import TASK_NAMES
from cit_train.config import RunConfig, flat, replace_fields
from cit_train.recipes import yfcc15m_in1k_mocob16


@dataclass(frozen=True)
class Sweep:
    """A set of runs that share most settings.

    Attributes:
        base: The shared config; its fields are flags of `cit sweep`.
        runs: The configs of the runs, by folder name, as a function of the shared config.
        doc: The description and the command.
    """

    base: Callable[[], RunConfig]
    runs: Callable[[RunConfig], dict[str, RunConfig]]
    doc: str

    def chosen(self, config: RunConfig, only: str) -> dict[str, RunConfig]:
        """The configs of all or some runs of the sweep, by folder name.

        Args:
            config: The shared config.
            only: Names of some runs, separated by commas; empty = all.

        Raises:
            ConfigError: The config sets a field that each run sets itself, or a run does not exist.
        """
        values, base = flat(config), flat(self.base())
        for field in ("metadata", "eval_task"):
            if values[field] != base[field]:
                raise ConfigError(
                    f"--{field.replace('_', '-')} {values[field]}: each run of a sweep has its "
                    "own; choose runs with --only"
                )
        runs = self.runs(config)
        names = [name.strip() for name in only.split(",") if name.strip()]
        for name in names:
            if name not in runs:
                close = difflib.get_close_matches(name, runs, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"--only: the sweep has no run {name!r}{hint}")
        return {name: runs[name] for name in names or runs}


def one_run_per_task(config: RunConfig) -> dict[str, RunConfig]:
    """One run for each of the 26 tasks: curated for its classes and evaluated on it."""
    return {task: replace_fields(config, metadata=task, eval_task=task) for task in TASK_NAMES}


def alltask_5k_mr005() -> RunConfig:
    """One run for each of the 26 tasks, on one GPU each: YFCC15M, 5,000 updates of 1,536 pairs.

    cit sweep alltask_5k_mr005 --pool pools/yfcc15m --eval-data eval_data
    """
    return replace_fields(
        yfcc15m_in1k_mocob16(),
        threshold=0.45,
        min_ratio=0.05,
        collection="multiset",
        batch_size=1_536,
        lanes=1,
        extra_prompts=False,
    )


SWEEPS: Mapping[str, Sweep] = {
    base.__name__: Sweep(base, one_run_per_task, base.__doc__ or "") for base in (alltask_5k_mr005,)
}
