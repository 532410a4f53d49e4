"""Each check in a process of its own, within its own time and that of all of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from scripts.gpu_check.outcomes import Outcome
from scripts.gpu_check.setting import ROOT, Check, Setting, own_environment

_SHOWN_LINES = 12


def seconds_for(check: Check, left: float) -> float | None:
    """The seconds a check may take; None = too few are left to begin it."""
    return min(check.limit_seconds, left) if left >= check.usual_seconds else None


def run_check(check: Check, setting: Setting, left: float) -> Outcome:
    """Run a check, or say that the time is over.

    Args:
        check: The check.
        setting: See `Setting`.
        left: Seconds that are left for all checks.
    """
    allowed = seconds_for(check, left)
    if allowed is None:
        why = f"{max(left, 0):.0f} s of the time were left, and it takes {check.usual_seconds:.0f}"
        return Outcome(check.name, "not run", why)
    log = setting.folder / check.log_name
    result = log.with_suffix(".json")
    started = time.monotonic()
    code = _run(check, setting, result, log, allowed)
    seconds = time.monotonic() - started
    if code is None:
        return _cut_off(check, allowed, seconds)
    if not result.is_file():
        why = f"its process ended with code {code}: {last_lines(log, 1)}"
        return Outcome(check.name, "failed", why, seconds)
    return Outcome(seconds=seconds, **json.loads(result.read_text(encoding="utf-8")))


def last_lines(log: Path, count: int = _SHOWN_LINES) -> str:
    """The end of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-count:])


def _run(check: Check, setting: Setting, result: Path, log: Path, seconds: float) -> int | None:
    """The exit code of the check's process; None = it was killed when its time was over."""
    command = [sys.executable, "-m", "scripts.gpu_check.child", check.name]
    command += ["--device", setting.device, "--folder", str(setting.folder), "--out", str(result)]
    command += ["--quick"] if setting.is_quick else []
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=own_environment(),
            start_new_session=True,  # so that what it started ends with it
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _cut_off(check: Check, allowed: float, seconds: float) -> Outcome:
    if allowed < check.limit_seconds:
        why = f"the time for all checks was over after {allowed:.0f} s of it"
        return Outcome(check.name, "not run", why, seconds)
    return Outcome(check.name, "failed", f"not done within {allowed:.0f} s", seconds)
