"""How runs stand, read from their folders alone: no scheduler is asked, nothing is opened to write.

A run is `waiting` (nothing there yet), `running`, `stopped` (it can go on), `finished` or `failed`.
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
# After so long without a line or a commit a running run is marked; a scan of a big pool takes long.
QUIET_SECONDS = 1800.0


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How one run stands.

    Attributes:
        name: Of the run.
        path: Its folder.
        state: See above.
        outer_step: Outer steps that are committed.
        update: Updates that are logged.
        max_updates: Updates of the whole run; None before it starts.
        updates_per_second: Over the last committed outer step, curation included; None before
            there are two.
        metric: What `value` is; empty before the first evaluation.
        value: The best evaluation so far, in percent.
        quiet_seconds: Since it last wrote something; None before it starts.
        reason: Why it failed or stopped, or what is odd.
        job_id: Of the job that was launched for it; empty when none was.
        log: What that job's command says.
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
    """How the run at `path` stands.

    Args:
        path: Its folder, which need not be there.
        report: How its last job ended, where a job was launched for it.
    """
    if not (path / "config.json").is_file():
        if report is not None and report.code not in (0, STOPPED):
            told = report.reason
            return RunState(name=path.name, path=str(path), state="failed", reason=told)
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
    quiet = time.time() - max(each.stat().st_mtime for each in _signs(path))
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
    """The state and its reason, from what the last try left."""
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


def _signs(path: Path) -> list[Path]:
    """Files that a living run writes."""
    manifests = sorted((path / "manifests").glob("step=*.json"))[-1:]
    metrics = path / "metrics.jsonl"
    return [path / "config.json", *manifests, *([metrics] if metrics.is_file() else [])]


def _rate(path: Path, updates: list[int]) -> float | None:
    """Updates a second between the last two commits."""
    if len(updates) < 2:
        return None
    manifests = sorted((path / "manifests").glob("step=*.json"))[-2:]
    seconds = manifests[1].stat().st_mtime - manifests[0].stat().st_mtime
    return (updates[-1] - updates[-2]) / seconds if seconds > 0 else None
