"""What submitit runs on a node, once a rank: one `cit` command in a process of its own.

submitit hands a job over as a pickle in the job's folder, written by the user who launches and read
by the same user's job; nobody else's pickle is ever opened, and nothing of cit is stored in one. A
job holds plain texts and numbers only.
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

# How a command ends that was asked to stop: by itself, or by a signal that it does not handle.
_STOPPED_CODES = frozenset(
    {STOPPED} | {-signal.SIGTERM, -signal.SIGUSR2} | {128 + signal.SIGTERM, 128 + signal.SIGUSR2}
)
_POLL_SECONDS = 0.1


class FailedCommandError(CitError):
    """The command of a job ended with another code than 0 or 75."""


class _EndedError(Exception):
    """Leaves submitit's signal handler: there is nothing to queue again."""


@dataclass(kw_only=True)
class CitJob:
    """One `cit` command as a job that goes on after preemption and after its time limit.

    TERM and submitit's own signal (USR2) are passed on. Which of them it was decides what follows:
    after USR2 the job is queued again. TERM comes before a preemption as well as before a
    cancellation, so the command stops, and the job waits for what the scheduler does next.

    Attributes:
        name: Of the run, for people.
        command: What comes after `cit`.
        folder: Where the command runs.
        run: The run folder, or the file of the results.
        report: JSON file that says how the job ended.
        stop_seconds: What the command has to save and end, before it is killed.
        decision_seconds: How long a stopped job waits for what the scheduler does with it.
        max_requeues: How often it may be queued again.
        program: What is started; left out, `cit` by this Python.
        num_requeues: How often it was.
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
            0 = done, 75 = stopped by somebody who does not want it queued again.

        Raises:
            FailedCommandError: The command failed, or was stopped once too often.
            SystemExit: This rank stopped together with the others; the first one says the rest.
        """
        environment = submitit.JobEnvironment()
        is_first = environment.global_rank == 0
        report = JobReport(job_id=environment.job_id, log=str(_log_path(environment)))
        if environment.cluster == "local":
            die_with_parent()  # SLURM ends what it started; the local launcher may just be gone
        if is_first:
            Path(self.report).unlink(missing_ok=True)
        refusal = ""
        with self._started(environment) as child:
            try:
                code = child.wait()
                assert code is not None
                if code in _STOPPED_CODES:
                    if not is_first:
                        # No result: after a requeue this rank is started anew.
                        raise SystemExit(0)
                    self._await_decision()
            except _EndedError as end:
                code, refusal = child.code() or 0, str(end)
            reason = refusal or self._reason(code, child)
            message = self._message(code, reason, child)
        if is_first:
            code_told = STOPPED if refusal or code in _STOPPED_CODES else code
            report = replace(report, code=code_told, reason=reason, message=message)
            report.write(Path(self.report))
        if code != 0 and (refusal or code not in _STOPPED_CODES):
            raise FailedCommandError(message)
        return STOPPED if code else 0

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again when it is told that the time is over; it has saved by then.

        Raises:
            _EndedError: The command is done or has failed, or was queued again too often.
        """
        again = replace(self, num_requeues=self.num_requeues + 1)
        if self._child is None:
            return DelayedSubmission(again)
        self._child.ask()
        if self._child.wait(self.stop_seconds) is None:
            self._child.kill()
        elif self._child.code() not in _STOPPED_CODES:
            raise _EndedError
        self._child.wait()
        if self.num_requeues >= self.max_requeues:
            raise _EndedError(
                f"stopped, and not queued again after {self.num_requeues} times (--max-requeues); "
                "launch it again to go on"
            )
        return DelayedSubmission(again)

    @contextmanager
    def _started(self, environment: submitit.JobEnvironment) -> Iterator[Child]:
        """The child, with TERM passed on to it; none is left when the block ends."""
        program = self.program or (sys.executable, "-m", "cit_train.cli")
        child = Child(
            [*program, *self.command],
            environment=_variables(environment),
            folder=self.folder,
            log=_log_path(environment),
        )

        def pass_on(number: int, frame: FrameType | None) -> None:
            child.ask()

        # Where TERM is the signal to requeue (SUBMITIT_PREEMPT_SIGNAL), it stays submitit's.
        is_ours = environment._usr_sig() != signal.SIGTERM
        before = signal.signal(signal.SIGTERM, pass_on) if is_ours else None
        self._child = child
        try:
            yield child
        finally:
            self._child = None
            if is_ours:
                signal.signal(signal.SIGTERM, before)
            child.close()

    def _await_decision(self) -> None:
        """Stay until the scheduler kills this job, or submitit's handler takes over."""
        deadline = time.monotonic() + self.decision_seconds
        while time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _reason(self, code: int, child: Child) -> str:
        """What went wrong, in a line: as the run says, else as the command said last."""
        if code == 0:
            return ""
        if code in _STOPPED_CODES:
            return "stopped; launch it again to go on"
        status = Path(self.run) / "status.json"
        try:
            told = str(read_json(status).get("message", "")) if status.is_file() else ""
        except DamagedError as error:
            told = str(error)
        errors = [line for line in child.tail().splitlines() if line.startswith("error: ")]
        told = told or (errors[-1].removeprefix("error: ") if errors else "")
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        return f"{told} ({how})" if told else f"it ended with {how}"

    def _message(self, code: int, reason: str, child: Child) -> str:
        """The same for a person who looks for more."""
        if not reason or code in _STOPPED_CODES:
            return f"{self.run}: {reason}" if reason else ""
        what = f"cit {shlex.join(self.command)}"
        told = f"{self.run}: {reason}\nthe command was: {what}\nthe last lines of {child.log}:"
        return f"{told}\n{child.tail()}"


def _log_path(environment: submitit.JobEnvironment) -> Path:
    """Where the command's own words go, beside submitit's logs."""
    return log_path(environment.paths.folder, environment.job_id, environment.global_rank)


def log_path(folder: Path, job_id: str, rank: int) -> Path:
    """The log of one rank's command."""
    return folder / f"{job_id}_{rank}_cit.log"


def _variables(environment: submitit.JobEnvironment) -> dict[str, str]:
    """The child's environment: as torchrun would set it where there are several ranks."""
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
