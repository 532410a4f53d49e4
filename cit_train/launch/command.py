"""`cit launch slurm`: run a recipe, a sweep or an evaluation as jobs of a cluster."""

import importlib.util
import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cit_curate.errors import CitError, ConfigError
from cit_curate.printing import print_json
from cit_curate.terminal import print_document, print_line
from cit_train.launch.flags import LaunchFlags
from cit_train.launch.job_report import (
    JobReport,
    LaunchedJob,
    jobs_folder,
    report_path,
    write_launch,
)
from cit_train.launch.plan import EVAL, Plan, plan_jobs
from cit_train.launch.resources import Resources
from cit_train.ranks.status import STOPPED
from cit_train.recipes import EVAL_RECIPES, RECIPES, recipe_help
from cit_train.sweeps import SWEEPS

if TYPE_CHECKING:
    from cit_train.launch.job import CitJob

# The wait for the scheduler's decision after TERM; sites give preempted jobs minutes at most.
_DECISION_SECONDS = 600.0


class FailedJobsError(CitError):
    """Jobs on this machine failed; the exit code is that of the first failed command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(args: Sequence[str]) -> None:
    """Run `cit launch slurm NAME …`; flags that are not the launcher's go to the command.

    Raises:
        ConfigError: The name, a flag or the cluster file is wrong, or SLURM is not installed.
        CitError: With --local: a job failed or was stopped.
    """
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return
    name, rest = args[0], list(args[1:])
    flags, given = tyro.cli(
        LaunchFlags,
        prog=f"cit launch slurm {name}",
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff,),
        return_unknown_args=True,
    )
    own = [each.name for each in fields(LaunchFlags)]
    plan = plan_jobs(name, given, out=flags.out, only=flags.only, own=own)
    resources = flags.resources(one_rank=not plan.trains)
    _check(plan, resources, flags)
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("cit launch needs submitit: pip install 'cit[slurm]'")
    import submitit  # noqa: F401 - the first import sets up its logger

    # Its logger writes to stdout, which is reserved for the document; stderr has the warnings.
    logging.getLogger("submitit").handlers.clear()
    if flags.dry_run:
        _show(plan, resources, flags)
    elif flags.local:
        _run_here(plan, resources, flags)
    else:
        _submit(plan, resources, flags)


def _check(plan: Plan, resources: Resources, flags: LaunchFlags) -> None:
    """Raise before a job is queued that could not run."""
    if plan.lanes % resources.num_ranks:
        raise ConfigError(
            f"{resources.num_ranks} ranks do not divide the {plan.lanes} "
            f"lane{'s' * (plan.lanes != 1)} of {plan.name}; give another --nodes, "
            "--ranks-per-node or --lanes"
        )
    if "%" in str(plan.out):
        raise ConfigError(f"--out {plan.out}: SLURM and submitit replace what follows a %")
    if flags.local and resources.nodes > 1:
        raise ConfigError("--local is this machine: leave out --nodes")
    if not (flags.local or flags.dry_run) and (missing := _missing()):
        raise ConfigError(
            f"{missing}; launch from a machine of the cluster. --dry-run prints the batch script "
            "here, --local runs the jobs here"
        )


def _missing() -> str:
    """The reason why SLURM cannot be used here; empty = it can."""
    absent = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    verb = "is" if len(absent) == 1 else "are"
    return f"{' and '.join(absent)} {verb} not on the PATH" if absent else ""


def _jobs(plan: Plan, resources: Resources, flags: LaunchFlags) -> "list[CitJob]":
    from cit_train.launch.job import CitJob

    folder = jobs_folder(plan.out)
    return [
        CitJob(
            name=job.name,
            command=job.command,
            folder=str(Path.cwd()),
            run=str(job.run),
            report=str(report_path(folder, job.name)),
            # A tenth of the warning time is left for submitit and scontrol.
            stop_seconds=max(1.0, 0.9 * resources.signal_seconds),
            decision_seconds=0.0 if flags.local else _DECISION_SECONDS,
            max_requeues=resources.max_requeues,
        )
        for job in plan.jobs
    ]


def _make_folders(plan: Plan) -> Path:
    folder = jobs_folder(plan.out)
    (folder / "reports").mkdir(parents=True, exist_ok=True)
    return folder


def _show(plan: Plan, resources: Resources, flags: LaunchFlags) -> None:
    from cit_train.launch.executors import slurm_executor

    executor = slurm_executor(plan.name, jobs_folder(plan.out), resources)
    script = executor.script(len(plan.jobs))
    commands = {job.name: f"cit {shlex.join(job.command)}" for job in plan.jobs}
    if flags.json:
        print_json({"script": script, "commands": commands, "missing": _missing()})
        return
    print_document(script)
    for number, command in enumerate(commands.values()):
        _line(f"job {number}: {command}" if len(commands) > 1 else f"it runs: {command}")
    if missing := _missing():
        _line(f"{missing} of this machine; submit from a machine of the cluster")


def _submit(plan: Plan, resources: Resources, flags: LaunchFlags) -> None:
    from cit_train.launch.executors import submit

    folder = _make_folders(plan)
    submitted = submit(plan.name, _jobs(plan, resources, flags), folder, resources)
    write_launch(folder, submitted)
    if flags.json:
        _show_json(folder, submitted)
        return
    first = submitted[0]
    number = first.job_id.split("_")[0]
    what = f"{len(submitted)} runs of {plan.name}" if len(submitted) > 1 else plan.name
    _line(f"submitted job {number}: {what} to {plan.out} ({resources})")
    _line(f"how it stands: cit sweep status {plan.out}")
    _line(f"what it says:  tail -F {first.log if len(submitted) == 1 else folder / '*_cit.log'}")
    _line(f"to end it:     scancel {number}; the same command goes on")


def _run_here(plan: Plan, resources: Resources, flags: LaunchFlags) -> None:
    from cit_train.launch.executors import run_here

    folder = _make_folders(plan)
    started: list[LaunchedJob] = []
    ends: list[tuple[LaunchedJob, JobReport]] = []

    def on_start(job: LaunchedJob) -> None:
        started.append(job)
        write_launch(folder, started)
        _line(f"started {job.name} (process {job.job_id}): tail -F {job.log}")

    def on_end(job: LaunchedJob, report: JobReport) -> None:
        ends.append((job, report))
        how = {0: "finished", STOPPED: "stopped"}.get(report.code, f"failed with {report.code}")
        place = job.run if Path(job.run).exists() else job.log
        _line(f"{how}: {job.name}, {len(ends)} of {len(plan.jobs)}; {place}")

    run_here(_jobs(plan, resources, flags), folder, resources, on_start=on_start, on_end=on_end)
    if flags.json:
        _show_json(folder, started, {job.name: report.code for job, report in ends})
    for _, report in ends:
        if report.code:
            raise FailedJobsError(report.message, report.code if 0 < report.code < 256 else 1)


def _show_json(
    folder: Path, jobs: Sequence[LaunchedJob], codes: dict[str, int] | None = None
) -> None:
    rows = [asdict(job) | ({"code": codes[job.name]} if codes else {}) for job in jobs]
    print_json({"jobs_folder": str(folder), "jobs": rows})


def _line(text: str) -> None:
    print_line(text, stderr=True)


def _overview() -> str:
    usage = (
        "cit launch slurm RECIPE|SWEEP|eval [--FIELD VALUE ...] [--nodes N] [--time HH:MM:SS] ..."
    )
    docs = {name: recipe.__doc__ or "" for name, recipe in RECIPES.items()}
    sweeps = {name: sweep.doc for name, sweep in SWEEPS.items()}
    evals = {name: recipe.__doc__ or "" for name, recipe in EVAL_RECIPES.items()}
    lines = [f"usage: {usage}", "", "recipes:", *recipe_help(docs)]
    lines += ["", "sweeps, one job for each run:", *recipe_help(sweeps)]
    lines += ["", "evaluations:", *recipe_help(evals)]
    lines += [f"  {EVAL} MODEL --tasks TASKS --data ROOT, as `cit eval`"]
    lines += ["", "examples:"]
    lines += ["  cit launch slurm laptop --pool POOL --out RUN --time 8:00:00 --partition gpu"]
    lines += [
        "  cit launch slurm alltask_5k_mr005 --pool POOL --eval-data ROOT --time 1-0 --dry-run"
    ]
    lines += ["", "The launcher's flags: cit launch slurm RECIPE --help", ""]
    return "\n".join(lines)
