"""`cit sweep status`: a table of runs, from their folders alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import tyro

from cit_curate.errors import ConfigError
from cit_curate.printing import print_json
from cit_train.launch.job_report import (
    JobReport,
    LaunchedJob,
    jobs_folder,
    read_launch,
    report_path,
)
from cit_train.launch.run_states import RunState, read_run_state
from cit_train.sweeps import SWEEPS


def status(
    sweep: tyro.conf.Positional[str], *, out: Path | None = None, json: bool = False
) -> None:
    """Show the states of runs: those of a sweep or of a folder, or a single run.

    It reads only the run folders, so it works while they run and without SLURM.

        cit sweep status SWEEP
        cit sweep status runs/my-sweep
        cit sweep status RUN --json

    Args:
        sweep: A sweep, a folder of runs, or a run.
        out: Folder of the sweep's runs; runs/SWEEP by default.
        json: Print one JSON document instead of a table.
    """
    paths = _run_paths(sweep, out)
    states = [_state(path) for path in paths]
    if json:
        print_json([asdict(state) for state in states])
    else:
        _print_table(states)


def _run_paths(sweep: str, out: Path | None) -> list[Path]:
    """The folders of the requested runs; some may not exist yet."""
    names: list[str] = []
    if sweep in SWEEPS and not Path(sweep).exists():
        folder = out or Path("runs") / sweep
        names += SWEEPS[sweep].runs(SWEEPS[sweep].base())
    elif out is not None:
        raise ConfigError(f"--out is for a sweep; there are {', '.join(SWEEPS)}")
    else:
        folder = Path(sweep)
        if (folder / "config.json").is_file() or _launched(folder) is not None:
            return [folder]
    names += [job.name for job in read_launch(jobs_folder(folder))]
    for jobs in sorted(folder.glob("*.jobs")):
        names += [job.name for job in read_launch(jobs) if _is_run_in(folder, job)]
    names += sorted(path.parent.name for path in folder.glob("*/config.json"))
    if not names:
        raise ConfigError(
            f"{sweep} is neither a sweep, a run nor a folder of runs; sweeps: {', '.join(SWEEPS)}"
        )
    return [folder / name for name in dict.fromkeys(names)]


def _is_run_in(folder: Path, job: LaunchedJob) -> bool:
    """Whether a job's run lies directly in this folder and is not an evaluation."""
    return Path(job.run).parent == folder.absolute() and Path(job.run).suffix != ".json"


def _launched(path: Path) -> tuple[LaunchedJob, JobReport | None] | None:
    """The job that was launched for a run, alone or in a sweep, and its report."""
    for jobs in (jobs_folder(path), jobs_folder(path.parent)):
        for job in read_launch(jobs):
            if job.name == path.name and Path(job.run) == path.absolute():
                return job, JobReport.read(report_path(jobs, job.name))
    return None


def _state(path: Path) -> RunState:
    job, report = _launched(path) or (None, None)
    state = read_run_state(path, report)
    return state if job is None else replace(state, job_id=job.job_id, log=job.log)


def _print_table(states: Sequence[RunState]) -> None:
    from rich.table import Table

    from cit_curate.terminal import add_row, draw, one_line, print_line

    table = Table()
    for heading in ("run", "state", "outer step", "update", "updates/s", "best %", "job"):
        is_text = heading in ("run", "state", "job")
        table.add_column(heading, justify="left" if is_text else "right")
    for state in states:
        total = f" of {state.max_updates:,}" if state.max_updates else ""
        rate, value = state.updates_per_second, state.value
        cells = (
            state.name,
            state.state,
            str(state.outer_step),
            f"{state.update:,}{total}",
            "–" if rate is None else f"{rate:.2f}",
            "–" if value is None else f"{value:.1f} {state.metric}",
            state.job_id or "–",
        )
        add_row(table, *cells)
    draw(table)
    for state in states:
        if state.reason:
            print_line(f"{state.name} {state.state}: {one_line(state.reason)}")
    counts = Counter(state.state for state in states)
    print_line(", ".join(f"{number} {name}" for name, number in counts.items()))
