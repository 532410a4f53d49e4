"""How a job ended, and what was launched: small JSON files beside the runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import read_json, write_json

LAUNCH_FILE = "launch.json"


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """How the last try of a job ended; there is none while it waits or runs.

    Attributes:
        job_id: As SLURM counts.
        log: What the command of its first rank said.
        code: Its exit code; negative = the signal that ended it.
        reason: What went wrong, in a line; empty when it is done.
        message: The same with the last lines of the log.
    """

    job_id: str
    log: str
    code: int = 0
    reason: str = ""
    message: str = ""

    def write(self, path: Path) -> None:
        """Store it, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "JobReport | None":
        """The report at `path`; None where there is none.

        Raises:
            DamagedError: What is there is no report.
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
        name: Of its run.
        run: The run folder, or the file of the results.
        command: What comes after `cit`.
        job_id: As SLURM counts; an array's are `ID_0`, `ID_1`, …
        log: What the command of its first rank says.
    """

    name: str
    run: str
    command: str
    job_id: str
    log: str


def jobs_folder(out: Path) -> Path:
    """Where the jobs of a run, or of the runs in a folder, have their scripts, logs and reports."""
    out = out.absolute()  # `.` has no name
    return out.with_name(f"{out.name.removesuffix('.json')}.jobs")


def report_path(folder: Path, name: str) -> Path:
    """The report of the job of one run."""
    return folder / "reports" / f"{name}.json"


def write_launch(folder: Path, jobs: Sequence[LaunchedJob]) -> None:
    """Remember what was submitted; a run that was launched before keeps its place."""
    known = {job.name: job for job in read_launch(folder)}
    known |= {job.name: job for job in jobs}
    write_json(folder / LAUNCH_FILE, {"jobs": [asdict(job) for job in known.values()]})


def read_launch(folder: Path) -> list[LaunchedJob]:
    """What was submitted, the first first; empty where nothing was.

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
