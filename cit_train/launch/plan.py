"""From a name and flags to the commands of the jobs, checked before anything is queued."""

import difflib
import functools
import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cit_curate.errors import ConfigError
from cit_train.config import flat
from cit_train.recipes import EVAL_RECIPES, RECIPES
from cit_train.resolve import resolve
from cit_train.sweeps import SWEEPS

EVAL = "eval"


@dataclass(frozen=True)
class PlannedJob:
    """One command.

    Attributes:
        name: The name of the run.
        run: The run folder, or the file of the results; absolute.
        command: The arguments of `cit`.
    """

    name: str
    run: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The commands of one launch.

    Attributes:
        name: The recipe, sweep or evaluation.
        out: The run folder, the folder of a sweep's runs, or the file of the results; absolute.
        jobs: The single job, or one for each run of a sweep.
        lanes: The lanes of each job, which its ranks share; 1 without training.
        trains: Whether the commands can run on several ranks.
    """

    name: str
    out: Path
    jobs: tuple[PlannedJob, ...]
    lanes: int
    trains: bool = True


def plan_jobs(
    name: str, given: Sequence[str], *, out: Path | None, only: str, own: Collection[str]
) -> Plan:
    """The jobs of a recipe, a sweep or an evaluation.

    Args:
        name: A recipe, a sweep, an evaluation recipe, or `eval`.
        given: The flags that are not the launcher's, as for `cit train`, `cit sweep`, `cit eval`.
        out: The value of --out, as for those commands.
        only: The runs of a sweep to launch, separated by commas.
        own: The names of the launcher's flags, for the nearest spelling.

    Raises:
        ConfigError: The name or a flag is unknown, or a flag does not fit.
        SystemExit: A value has the wrong type (code 2); stderr has the message.
    """
    if name in RECIPES:
        _refuse_only(only)
        return _training(name, given, out, own)
    if name in SWEEPS:
        return _sweep(name, given, out, only, own)
    if name == EVAL or name in EVAL_RECIPES:
        _refuse_only(only)
        return _evaluation(name, given, out, own)
    names = [*RECIPES, *SWEEPS, EVAL, *EVAL_RECIPES]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"there is no recipe or sweep {name!r}; there are {', '.join(names)}{hint}")


def _training(name: str, given: Sequence[str], out: Path | None, own: Collection[str]) -> Plan:
    recipe = RECIPES[name]()
    _check_flags(given, flat(recipe), own)
    config = resolve(recipe, given, prog=f"cit train {name}")
    run = (out or Path("runs") / name).absolute()
    command = ("train", name, *given, "--out", str(run), "--resume")
    return Plan(name, run, (PlannedJob(run.name, run, command),), config.curate.lanes)


def _sweep(
    name: str, given: Sequence[str], out: Path | None, only: str, own: Collection[str]
) -> Plan:
    base = SWEEPS[name].base()
    _check_flags(given, flat(base), own)
    configs = SWEEPS[name].chosen(resolve(base, given, prog=f"cit sweep {name}"), only)
    folder = (out or Path("runs") / name).absolute()
    place = ("--out", str(folder))
    jobs = tuple(
        PlannedJob(run, folder / run, ("sweep", name, *given, "--only", run, *place))
        for run in configs
    )
    return Plan(name, folder, jobs, min(config.curate.lanes for config in configs.values()))


def _evaluation(name: str, given: Sequence[str], out: Path | None, own: Collection[str]) -> Plan:
    import tyro

    from cit_train.evaluation.command import evaluate

    @functools.wraps(evaluate)
    def parsed(*args: Any, **values: Any) -> dict[str, Any]:
        return {**dict(zip(parameters, args, strict=False)), **values}

    parameters = inspect.signature(evaluate).parameters
    _check_flags(given, parameters, own)
    style = (
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.DisallowNone,
        tyro.conf.PositionalMetavarFromFieldName,
    )
    words = [*given] if name == EVAL else [name, *given]
    values = tyro.cli(parsed, prog=f"cit launch slurm {name}", args=words, config=style)
    model = str(values["model"])
    title = name if name in EVAL_RECIPES else f"{EVAL}-{Path(model).name or 'model'}"
    has_file = bool(values["tasks"]) or model in EVAL_RECIPES
    if out is not None and not has_file:
        raise ConfigError("--out is for --tasks; add --tasks NAME with --data at its parent")
    results = (out or Path("runs") / f"{title}.json").absolute()
    command = (EVAL, *words, *(("--out", str(results)) if has_file else ()))
    return Plan(title, results, (PlannedJob(results.stem, results, command),), 1, trains=False)


def _refuse_only(only: str) -> None:
    if only:
        raise ConfigError("--only chooses runs of a sweep; this is none")


def _check_flags(given: Sequence[str], fields: Collection[str], own: Collection[str]) -> None:
    """Raise on a flag that neither the launcher nor the command has."""
    for word in given:
        flag = word.split("=", 1)[0]
        field = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or field in fields or field.removeprefix("no_") in fields:
            continue
        if field in ("resume", "overwrite", "nproc", "print_config"):
            raise ConfigError(
                f"{flag} is not for jobs: each try goes on with the run wherever it stands"
            )
        names = [f"--{each.replace('_', '-')}" for each in (*own, *fields)]
        close = difflib.get_close_matches(flag, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; --help shows them"
        raise ConfigError(f"there is no flag {flag}{hint}")
