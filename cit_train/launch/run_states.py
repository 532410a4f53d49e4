"""The states of runs, read from their folders alone, without a scheduler and without writing.

A run is `waiting` (not started yet), `running`, `stopped` (it can resume), `finished` or `failed`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import read_json
from cit_curate.storage.lock import may_have_writer
from cit_train.launch.job_report import JobReport
from cit_train.ranks.status import STOPPED

State = Literal["waiting", "running", "stopped", "finished", "failed"]
# A run that writes nothing for so long is marked as quiet; the scan of a big pool takes long.
QUIET_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of one run.

    Attributes:
        name: The name of the run.
        path: The run folder.
        state: The state, as above.
        outer_step: The number of committed outer steps.
        update: The number of logged updates.
        max_updates: The updates of the whole run; None before it starts.
        updates_per_second: The rate over the last committed outer step, with curation; None before
            the second commit.
        metric: The metric of `value`; empty before the first evaluation.
        value: The best evaluation so far, in percent.
        quiet_seconds: The seconds since the run last wrote something; None before it starts.
        reason: The reason why it failed or stopped, or a warning.
        job_id: The id of the job that was launched for it; empty = none.
        log: The log of that job's command.
    """

    name: str
    path: str
    state: State
    outer_step: int = 0
    update: int = 0
    max_updates: int | None = None
    updates_per_second: float | None = None
    metric: str = ""
    value: float | None = None
    quiet_seconds: float | None = None
    reason: str = ""
    job_id: str = ""
    log: str = ""


def read_run_state(path: Path, report: JobReport | None = None) -> RunState:
    """The state of the run at `path`.

    Args:
        path: The run folder, which need not exist.
        report: The report of its last job; None = no job has ended.
    """
    if not (path / "config.json").is_file():
        if report is not None and report.code not in (0, STOPPED):
            reason = report.reason
            return RunState(name=path.name, path=str(path), state="failed", reason=reason)
        return RunState(name=path.name, path=str(path), state="waiting")
    try:
        return _started(path, report)
    except DamagedError as error:
        return RunState(name=path.name, path=str(path), state="failed", reason=str(error))


def _started(path: Path, report: JobReport | None) -> RunState:
    from cit_curate.run.ledger import Run

    run = Run.open(path)
    max_updates = int(run.config.get("max_updates", 0))
    commits = run.commits()
    lines = run.metrics()
    trained = [int(line["update"]) for line in lines if line.get("kind") == "train"]
    update = max([*trained[-1:], *(commit.update for commit in commits[-1:])], default=0)
    best = commits[-1].best if commits else None
    evaluated = [line for line in lines if line.get("kind") == "eval" and "value" in line]
    best = max([*evaluated, *([best] if best else [])], key=lambda one: one["value"], default=None)
    quiet = time.time() - max(file.stat().st_mtime for file in _written_files(path))
    done = bool(commits) and commits[-1].update >= max_updates
    state, reason = _state(path, report, done=done)
    if state == "running" and quiet > QUIET_SECONDS:
        reason = f"nothing written for {quiet / 60:.0f} minutes; it may have been killed"
    return RunState(
        name=path.name,
        path=str(path),
        state=state,
        outer_step=len(commits),
        update=update,
        max_updates=max_updates,
        updates_per_second=_rate(path, [commit.update for commit in commits]),
        metric=str(best["metric"]) if best else "",
        value=float(best["value"]) if best else None,
        quiet_seconds=quiet,
        reason=reason,
    )


def _state(path: Path, report: JobReport | None, *, done: bool) -> tuple[State, str]:
    """The state and its reason, from the files of the last try."""
    if (path / "status.json").is_file():
        status: Mapping[str, Any] = read_json(path / "status.json")
        code, message = int(status.get("code", 1)), str(status.get("message", ""))
    elif may_have_writer(path):
        return "running", ""
    elif done:
        return "finished", ""
    elif report is not None:
        code, message = report.code, report.reason
    else:
        return "stopped", ""
    if code == 0:
        return "finished", ""
    return ("stopped", message) if code == STOPPED else ("failed", message)


def _written_files(path: Path) -> list[Path]:
    """The files that a running run writes."""
    manifests = sorted((path / "manifests").glob("step=*.json"))[-1:]
    metrics = path / "metrics.jsonl"
    return [path / "config.json", *manifests, *([metrics] if metrics.is_file() else [])]


def _rate(path: Path, updates: list[int]) -> float | None:
    """The updates a second between the last two commits."""
    if len(updates) < 2:
        return None
    manifests = sorted((path / "manifests").glob("step=*.json"))[-2:]
    seconds = manifests[1].stat().st_mtime - manifests[0].stat().st_mtime
    return (updates[-1] - updates[-2]) / seconds if seconds > 0 else None
