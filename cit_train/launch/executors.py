"""Submission through submitit: to SLURM as a batch script, or as processes on this machine."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths
from submitit.helpers import clean_env, environment_variables
from submitit.slurm.slurm import SlurmJob

from cit_curate.errors import CitError, ConfigError
from cit_train.launch.job import CitJob, log_path
from cit_train.launch.job_report import JobReport, LaunchedJob
from cit_train.launch.resources import Resources
from cit_train.ranks.status import STOPPED

_POLL_SECONDS = 0.1


class StoppedLaunchError(CitError):
    """The jobs on this machine were stopped; the same command resumes them."""

    exit_code = STOPPED


class ScriptExecutor(submitit.SlurmExecutor):
    """submitit's SLURM executor, which can also write scripts without SLURM."""

    @classmethod
    def affinity(cls) -> int:
        """Always usable: the launcher has checked for SLURM, with a better message."""
        return 2

    def script(self, num_jobs: int) -> str:
        """The batch script of one job, or of an array."""
        if num_jobs > 1:
            self.parameters["map_count"] = num_jobs
        try:
            return self._make_submission_file_text(self._submitit_command_str, "")
        finally:
            self.parameters.pop("map_count", None)

    def _internal_process_submissions(
        self, delayed_submissions: list[DelayedSubmission]
    ) -> list[submitit.Job[int]]:
        """Submit like submitit, whose arrays ignore the configured Python (1.5.4)."""
        if len(delayed_submissions) == 1:
            return super()._internal_process_submissions(delayed_submissions)
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pickles = []
        for delayed in delayed_submissions:
            path = folder / f"{uuid.uuid4().hex}.pkl"
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            delayed.dump(path)
            pickles.append(path)
        self.parameters["map_count"] = len(pickles)
        try:
            array = self._submit_command(self._submitit_command_str)
        finally:
            del self.parameters["map_count"]
        jobs: list[submitit.Job[int]] = []
        for number, path in enumerate(pickles):
            ranks = range(array.num_tasks)
            job = SlurmJob[int](self.folder, f"{array.job_id}_{number}", tasks=list(ranks))
            job.paths.move_temporary_file(path, "submitted_pickle")
            jobs.append(job)
        return jobs


def slurm_executor(name: str, folder: Path, resources: Resources) -> ScriptExecutor:
    """The executor of jobs with these resources."""
    cluster = resources.cluster
    executor = ScriptExecutor(folder, resources.max_requeues, python=cluster.python or None)
    options = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{cluster.mem_gb}GB" if cluster.mem_gb else None,
        "setup": cluster.setup,
        # srun does not inherit this from sbatch (since SLURM 22.05).
        "srun_args": [f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else [],
    }
    executor.update_parameters(
        job_name=f"cit-{name}",
        nodes=resources.nodes,
        ntasks_per_node=resources.ranks_per_node,
        time=resources.minutes,
        signal_delay_s=resources.signal_seconds,
        array_parallelism=resources.array_parallelism,
        # Some clusters requeue a job only with this option.
        additional_parameters={"requeue": True, **cluster.options},
        **{key: value for key, value in options.items() if value},
    )
    return executor


def submit(
    name: str, jobs: Sequence[CitJob], folder: Path, resources: Resources
) -> list[LaunchedJob]:
    """Submit one job, or several as an array.

    Raises:
        ConfigError: sbatch refused the job.
    """
    executor = slurm_executor(name, folder, resources)
    try:
        # A job that launches jobs must not pass its own SLURM variables on.
        with clean_env():
            submitted = executor.submit_array(jobs)
    except (FailedJobError, FailedSubmissionError) as error:
        raise ConfigError(f"sbatch refused the job: {error}") from error
    ids = (str(one.job_id) for one in submitted)
    return [launched(job, folder, job_id) for job, job_id in zip(jobs, ids, strict=True)]


def launched(job: CitJob, folder: Path, job_id: str) -> LaunchedJob:
    """The record of a submitted job."""
    return LaunchedJob(
        name=job.name,
        run=job.run,
        command=" ".join(job.command),
        job_id=job_id,
        log=str(log_path(folder, job_id, 0)),
    )


def run_here(
    jobs: Sequence[CitJob],
    folder: Path,
    resources: Resources,
    *,
    on_start: Callable[[LaunchedJob], None],
    on_end: Callable[[LaunchedJob, JobReport], None],
) -> None:
    """Run jobs on this machine, at most `array_parallelism` at a time, and wait for all.

    Raises:
        StoppedLaunchError: Ctrl-C or TERM; the running jobs were asked to stop, and have ended.
    """
    executor = submitit.LocalExecutor(
        folder, resources.max_requeues, python=resources.cluster.python or None
    )
    executor.update_parameters(
        timeout_min=resources.seconds / 60,
        tasks_per_node=resources.ranks_per_node,
        gpus_per_node=resources.gpus_per_node,
        signal_delay_s=resources.signal_seconds,
    )
    waiting = list(jobs)
    running: dict[str, tuple[submitit.Job[int], CitJob]] = {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            while waiting and len(running) < resources.array_parallelism:
                job = waiting.pop(0)
                submitted = _start(executor, job, resources)
                running[submitted.job_id] = (submitted, job)
                on_start(launched(job, folder, submitted.job_id))
            _collect(running, folder, on_end)
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        for job_id in running:  # the launcher's pid; it forwards the signal to its ranks
            os.kill(int(job_id), signal.SIGTERM)
        while running:
            _collect(running, folder, on_end)
            time.sleep(_POLL_SECONDS)
        raise StoppedLaunchError("stopped; run the same command again to resume") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(
    executor: submitit.LocalExecutor, job: CitJob, resources: Resources
) -> submitit.Job[int]:
    # A terminal sends Ctrl-C to all processes; submitit's launcher would kill its ranks after 1 s.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with environment_variables(**resources.cluster.environment):
            return executor.submit(job)
    finally:
        signal.signal(signal.SIGINT, before)


def _collect(
    running: dict[str, tuple[submitit.Job[int], CitJob]],
    folder: Path,
    on_end: Callable[[LaunchedJob, JobReport], None],
) -> None:
    for job_id, (submitted, job) in list(running.items()):
        if submitted.done():
            del running[job_id]
            record = launched(job, folder, job_id)
            report = JobReport.read(Path(job.report)) or JobReport(
                job_id=job_id,
                log=record.log,
                code=1,
                reason="it ended without a report",
                message=f"{job.run}: it ended without a report; see {submitted.paths.stderr}",
            )
            on_end(record, report)
