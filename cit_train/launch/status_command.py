"""What `cit sweep status` does: a table of runs, from their folders alone."""

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import tyro

from cit_curate.errors import ConfigError
from cit_train.launch.job_report import JobReport, jobs_folder, read_launch, report_path
from cit_train.launch.run_states import RunState, read_run_state
from cit_train.sweeps import SWEEPS


def status(
    sweep: tyro.conf.Positional[str], *, out: Path | None = None, json: bool = False
) -> None:
    """Show how runs stand: those of a sweep, of a folder, or one.

    It reads the run folders, so it works while they run and where there is no SLURM.

        cit sweep status SWEEP
        cit sweep status runs/my-sweep
        cit sweep status RUN --json

    Args:
        sweep: A sweep, a folder of runs, or a run.
        out: Folder of the sweep's runs; runs/SWEEP when left out.
        json: Print one JSON document instead of a table.
    """
    folder, names = _runs(sweep, out)
    states = [_state(folder, name) for name in names]
    if json:
        sys.stdout.write(json_format.dumps([asdict(state) for state in states]) + "\n")
    else:
        _print_table(folder, states)


def _runs(sweep: str, out: Path | None) -> tuple[Path, list[str]]:
    """The folder of the runs, and their names; the only run of a single one is `""`."""
    if sweep in SWEEPS and not Path(sweep).exists():
        folder, known = out or Path("runs") / sweep, list(SWEEPS[sweep].runs(SWEEPS[sweep].base()))
    elif out is not None:
        raise ConfigError(f"--out is for a sweep; there are {', '.join(SWEEPS)}")
    else:
        folder, known = Path(sweep), []
    launched = [job.name for job in read_launch(jobs_folder(folder))]
    is_one = (folder / "config.json").is_file() or (
        launched == [folder.name] and not any(folder.glob("*/config.json"))
    )
    if is_one and not known:
        return folder, [""]
    there = sorted(path.parent.name for path in folder.glob("*/config.json"))
    names = list(dict.fromkeys([*known, *launched, *there]))
    if not names:
        raise ConfigError(
            f"{sweep} is no sweep, no run and no folder of runs; sweeps: {', '.join(SWEEPS)}"
        )
    return folder, names


def _state(folder: Path, name: str) -> RunState:
    jobs = jobs_folder(folder)
    path = folder / name
    title = name or folder.name
    state = read_run_state(path, JobReport.read(report_path(jobs, title)))
    launched = {job.name: job for job in read_launch(jobs)}.get(title)
    if launched is None:
        return state
    return replace(state, job_id=launched.job_id, log=launched.log)


def _print_table(folder: Path, states: Sequence[RunState]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(str(folder)), title_justify="left")
    for heading in ("run", "state", "outer step", "update", "updates/s", "best %", "job", "reason"):
        side = "left" if heading in ("run", "state", "job", "reason") else "right"
        table.add_column(heading, justify="right" if side == "right" else "left")
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
            state.reason,
        )
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)
    counts = {state.state: 0 for state in states}
    for state in states:
        counts[state.state] += 1
    summary = ", ".join(f"{number} {name}" for name, number in counts.items())
    Console(stderr=True).print(Text(f"{len(states)} runs: {summary}"), soft_wrap=True)
