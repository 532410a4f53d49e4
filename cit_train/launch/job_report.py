"""The records of launched jobs and of how they ended: small JSON files beside the runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import read_json, write_json

LAUNCH_FILE = "launch.json"


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """The end of a job's last try; there is none while the job waits or runs.

    Attributes:
        job_id: The SLURM job id.
        log: The log of the first rank's command.
        code: The exit code of that command; negative = the signal that ended it.
        reason: The cause of a failure, in one line; empty = done.
        message: The reason with the last lines of the log.
    """

    job_id: str
    log: str
    code: int = 0
    reason: str = ""
    message: str = ""

    def write(self, path: Path) -> None:
        """Write the report atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "JobReport | None":
        """The report at `path`; None = no file.

        Raises:
            DamagedError: The file is not a report.
        """
        if not path.is_file():
            return None
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise DamagedError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True, kw_only=True)
class LaunchedJob:
    """One job that was submitted.

    Attributes:
        name: The name of the run.
        run: The run folder, or the file of the results.
        command: The arguments of `cit`.
        job_id: The SLURM job id; those of an array are `ID_0`, `ID_1`, …
        log: The log of the first rank's command.
    """

    name: str
    run: str
    command: str
    job_id: str
    log: str


def jobs_folder(out: Path) -> Path:
    """The folder of scripts, logs and reports of a run's jobs, or of those of a sweep."""
    out = out.absolute()  # `.` has no name
    return out.with_name(f"{out.name.removesuffix('.json')}.jobs")


def report_path(folder: Path, name: str) -> Path:
    """The path of the report of one run's job."""
    return folder / "reports" / f"{name}.json"


def write_launch(folder: Path, jobs: Sequence[LaunchedJob]) -> None:
    """Record submitted jobs; a run that was launched before keeps its position in the file."""
    known = {job.name: job for job in read_launch(folder)}
    known |= {job.name: job for job in jobs}
    write_json(folder / LAUNCH_FILE, {"jobs": [asdict(job) for job in known.values()]})


def read_launch(folder: Path) -> list[LaunchedJob]:
    """The submitted jobs, in order; empty = none.

    Raises:
        DamagedError: The file is damaged.
    """
    path = folder / LAUNCH_FILE
    if not path.is_file():
        return []
    try:
        return [LaunchedJob(**job) for job in read_json(path)["jobs"]]
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
