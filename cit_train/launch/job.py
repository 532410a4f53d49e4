"""The job that submitit runs on each rank: one `cit` command in a child process.

submitit passes a job as a pickle in the job's folder, written by the launching user and read by the
same user's job. No other user's pickle is ever opened, and cit stores nothing as a pickle. A job
holds only strings and numbers.
"""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import submitit
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from cit_curate.errors import CitError, DamagedError
from cit_curate.storage.durable import read_json
from cit_train.launch.child import Child, die_with_parent
from cit_train.launch.job_report import JobReport
from cit_train.ranks.status import STOPPED

# The codes of a stopped command: its own, or those of a signal that it does not handle.
_STOPPED_CODES = frozenset(
    {STOPPED} | {-signal.SIGTERM, -signal.SIGUSR2} | {128 + signal.SIGTERM, 128 + signal.SIGUSR2}
)
_POLL_SECONDS = 0.1


class FailedCommandError(CitError):
    """The command of a job ended with a code other than 0 and 75."""


class _EndedError(Exception):
    """Raised to leave submitit's signal handler when nothing is to be queued again."""


@dataclass(kw_only=True)
class CitJob:
    """One `cit` command as a job that resumes after preemption and after its time limit.

    TERM and submitit's own signal (USR2) are forwarded to the command. After USR2 the job is queued
    again. TERM precedes a preemption as well as a cancellation, so the command stops, and the job
    waits for the scheduler's decision.

    Attributes:
        name: The name of the run.
        command: The arguments of `cit`.
        folder: The working directory of the command.
        run: The run folder, or the file of the results.
        report: The JSON file that records how the job ended.
        stop_seconds: The time that the command has to save and end before it is killed.
        decision_seconds: The time that a stopped job waits for the scheduler's decision.
        max_requeues: The maximum number of times that it is queued again.
        program: The program to start; empty = `cit` with this Python.
        num_requeues: The number of times that it was queued again.
    """

    name: str
    command: tuple[str, ...]
    folder: str
    run: str
    report: str
    stop_seconds: float = 110.0
    decision_seconds: float = 600.0
    max_requeues: int = 50
    program: tuple[str, ...] = ()
    num_requeues: int = 0
    _child: Child | None = field(default=None, init=False, repr=False)

    def __call__(self) -> int:
        """Run the command to its end.

        Returns:
            0 = done, 75 = stopped without being queued again.

        Raises:
            FailedCommandError: The command failed, or was stopped too many times.
            SystemExit: This rank stopped with the others; the first rank reports the outcome.
        """
        environment = submitit.JobEnvironment()
        is_first = environment.global_rank == 0
        report = JobReport(job_id=environment.job_id, log=str(_log_path(environment)))
        if environment.cluster == "local":
            die_with_parent()  # SLURM ends its processes; the local launcher may just die
        if is_first:
            Path(self.report).unlink(missing_ok=True)
        refusal = ""
        with self._started(environment) as child:
            try:
                code = child.wait()
                assert code is not None
                if code in _STOPPED_CODES:
                    if not is_first:
                        # No result: after a requeue this rank is started again.
                        raise SystemExit(0)
                    self._await_decision()
            except _EndedError as error:
                code, refusal = child.code() or 0, str(error)
            reason = refusal or self._reason(code, child)
            message = self._message(code, reason, child)
        if is_first:
            end = STOPPED if refusal or code in _STOPPED_CODES else code
            report = replace(report, code=end, reason=reason, message=message)
            report.write(Path(self.report))
        if code != 0 and (refusal or code not in _STOPPED_CODES):
            raise FailedCommandError(message)
        return STOPPED if code else 0

    def checkpoint(self) -> DelayedSubmission:
        """Stop the command, which saves, and return the job that submitit queues again.

        Raises:
            _EndedError: The command is done or failed, or the limit of requeues is reached.
        """
        again = replace(self, num_requeues=self.num_requeues + 1)
        if self._child is None:
            return DelayedSubmission(again)
        self._child.request_stop()
        if self._child.wait(self.stop_seconds) is None:
            self._child.kill()
        elif self._child.code() not in _STOPPED_CODES:
            raise _EndedError
        self._child.wait()
        if self.num_requeues >= self.max_requeues:
            raise _EndedError(
                f"stopped, and not queued again after {self.num_requeues} times (--max-requeues); "
                "launch it again to resume"
            )
        return DelayedSubmission(again)

    @contextmanager
    def _started(self, environment: submitit.JobEnvironment) -> Iterator[Child]:
        """The child, to which TERM is forwarded; the end of the block releases it."""
        program = self.program or (sys.executable, "-m", "cit_train.cli")
        child = Child(
            [*program, *self.command],
            environment=_variables(environment),
            folder=self.folder,
            log=_log_path(environment),
        )

        def forward(number: int, frame: FrameType | None) -> None:
            child.request_stop()

        # If TERM is submitit's signal to requeue (SUBMITIT_PREEMPT_SIGNAL), submitit handles it.
        is_ours = environment._usr_sig() != signal.SIGTERM
        before = signal.signal(signal.SIGTERM, forward) if is_ours else None
        self._child = child
        try:
            yield child
        finally:
            self._child = None
            if is_ours:
                signal.signal(signal.SIGTERM, before)
            child.close()

    def _await_decision(self) -> None:
        """Wait until the scheduler kills this job or submitit's handler takes over."""
        deadline = time.monotonic() + self.decision_seconds
        while time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _reason(self, code: int, child: Child) -> str:
        """The cause in one line: the run's own message, else the command's last error."""
        if code == 0:
            return ""
        if code in _STOPPED_CODES:
            return "stopped; launch it again to resume"
        status = Path(self.run) / "status.json"
        try:
            cause = str(read_json(status).get("message", "")) if status.is_file() else ""
        except DamagedError as error:
            cause = str(error)
        errors = [line for line in child.tail().splitlines() if line.startswith("error: ")]
        cause = cause or (errors[-1].removeprefix("error: ") if errors else "")
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        return f"{cause} ({how})" if cause else f"it ended with {how}"

    def _message(self, code: int, reason: str, child: Child) -> str:
        """The reason with the command and the last lines of its log."""
        if not reason or code in _STOPPED_CODES:
            return f"{self.run}: {reason}" if reason else ""
        what = f"cit {shlex.join(self.command)}"
        head = f"{self.run}: {reason}\nthe command was: {what}\nthe last lines of {child.log}:"
        return f"{head}\n{child.tail()}"


def _log_path(environment: submitit.JobEnvironment) -> Path:
    """The log of the command's output, beside submitit's logs."""
    return log_path(environment.paths.folder, environment.job_id, environment.global_rank)


def log_path(folder: Path, job_id: str, rank: int) -> Path:
    """The log of one rank's command."""
    return folder / f"{job_id}_{rank}_cit.log"


def _variables(environment: submitit.JobEnvironment) -> dict[str, str]:
    """The child's environment; with several ranks, with the variables of torchrun."""
    variables = dict(os.environ)
    if environment.num_tasks > 1:
        ranks = TorchDistributedEnvironment()
        variables |= {
            "MASTER_ADDR": ranks.master_addr,
            "MASTER_PORT": str(ranks.master_port),
            "RANK": str(ranks.rank),
            "WORLD_SIZE": str(ranks.world_size),
            "LOCAL_RANK": str(ranks.local_rank),
            "LOCAL_WORLD_SIZE": str(ranks.local_world_size),
        }
    return variables
