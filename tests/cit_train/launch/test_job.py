"""The body of a job, run by submitit's own local executor: ends, requeues, limits, no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import submitit
from submitit.core.utils import FailedJobError

from cit_train.launch.job import CitJob
from cit_train.launch.job_report import JobReport

pytestmark = pytest.mark.slow

STUB = Path(__file__).with_name("stub.py")


def make_job(folder: Path, code: int, seconds: float = 0.0, **fields: Any) -> CitJob:
    return CitJob(
        name="run",
        command=(str(folder), str(code), str(seconds)),
        folder=str(folder),
        run=str(folder / "run"),
        report=str(folder / "report.json"),
        decision_seconds=0.0,
        program=(sys.executable, "-S", str(STUB)),
        **fields,
    )


def submit(folder: Path, job: CitJob, *, ranks: int = 1) -> "submitit.LocalJob[int]":
    executor = submitit.LocalExecutor(folder / "jobs", max_num_timeout=50)
    executor.update_parameters(timeout_min=2.0, tasks_per_node=ranks, signal_delay_s=60)
    submitted = executor.submit(job)
    assert isinstance(submitted, submitit.LocalJob)
    return submitted


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def tries(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    paths = sorted(folder.glob(f"try-{rank}-*"))
    return [json.loads(path.read_text()) for path in paths if path.read_text()]


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def preempting(monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's own interrupt reaches a local job's ranks as TERM, which its launcher passes on.

    USR2, its default, ends the local launcher itself (see the last test).
    """
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "TERM")
    monkeypatch.setattr(submitit.JobEnvironment, "USR_SIG", "TERM")


def test_a_command_that_ends_well_is_a_job_that_is_done(tmp_path: Path) -> None:
    assert submit(tmp_path, make_job(tmp_path, 0)).result() == 0
    report = JobReport.read(tmp_path / "report.json")
    assert report is not None
    assert (report.code, report.reason) == (0, "")
    assert tries(tmp_path)[0]["RANK"] is None


def test_a_failure_has_the_last_lines_and_what_the_run_says(tmp_path: Path) -> None:
    job = submit(tmp_path, make_job(tmp_path, 3))
    with pytest.raises(FailedJobError, match="the disk is made of cheese"):
        job.result()
    report = JobReport.read(tmp_path / "report.json")
    assert report is not None
    assert report.code == 3
    assert report.reason == "the disk is made of cheese (exit code 3)"
    assert "first line\nerror: the disk" in report.message
    assert "error: the disk" in Path(report.log).read_text()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"code": 3, "message": "rank 2 was first"}')
    with pytest.raises(FailedJobError, match="rank 2 was first"):
        submit(tmp_path, make_job(tmp_path, 3)).result()


@pytest.mark.faults("D6")
@pytest.mark.usefixtures("preempting")
def test_a_preempted_job_saves_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    job = submit(tmp_path, make_job(tmp_path, 0, 60.0), ranks=2)
    wait_for(lambda: tries(tmp_path, 0) and tries(tmp_path, 1))
    os.kill(tries(tmp_path, 1)[0]["pid"], signal.SIGTERM)  # as the ranks of a run agree to stop
    job._interrupt()
    assert job.results() == [0, 0]
    for rank in (0, 1):
        first, second = tries(tmp_path, rank)
        for seen in (first, second):
            assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == (*[str(rank)] * 2, "2")
            assert seen["MASTER_ADDR"]
            assert seen["MASTER_PORT"] == tries(tmp_path)[0]["MASTER_PORT"]
        assert not is_alive(first["pid"])
    # One request each: a second one would end a run at once.
    assert (tmp_path / "stops").read_text() == "SIGTERM\nSIGTERM\n"


@pytest.mark.faults("D6")
@pytest.mark.usefixtures("preempting")
def test_a_job_is_not_queued_again_without_end(tmp_path: Path) -> None:
    job = submit(tmp_path, make_job(tmp_path, 75, 60.0, max_requeues=0))
    wait_for(lambda: tries(tmp_path))
    job._interrupt()
    with pytest.raises(FailedJobError, match="not queued again after 0 times"):
        job.result()
    assert len(tries(tmp_path)) == 1
    report = JobReport.read(tmp_path / "report.json")
    assert report is not None
    assert report.code == 75


def test_a_launcher_that_dies_leaves_no_orphans(tmp_path: Path) -> None:
    job = submit(tmp_path, make_job(tmp_path, 0, 60.0))
    wait_for(lambda: tries(tmp_path))
    pid = tries(tmp_path)[0]["pid"]
    job._interrupt()  # USR2: ends the local launcher, which does not know it
    wait_for(lambda: not is_alive(pid))
    assert (tmp_path / "stops").read_text() == "SIGTERM\n"
    wait_for((tmp_path / "report.json").exists)
    report = JobReport.read(tmp_path / "report.json")
    assert report is not None
    assert report.reason == "stopped; launch it again to resume"
    wait_for(job.done)


def test_a_rank_that_is_killed_takes_its_command_with_it(tmp_path: Path) -> None:
    job = submit(tmp_path, make_job(tmp_path, 0, 60.0))
    wait_for(lambda: tries(tmp_path))
    pid = tries(tmp_path)[0]["pid"]
    status = Path(f"/proc/{pid}/status").read_text()
    body = int(status.split("PPid:")[1].split()[0])
    os.kill(body, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
    assert (tmp_path / "stops").read_text() == "SIGTERM\n"
    wait_for(job.done)


SRUN = """#!/bin/bash
# As srun: options, then the command; two tasks, whose streams go to files.
while [ "$1" != "--error" ]; do shift; done
shift 2
pids=()
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=0 SLURM_NODEID=$rank "$@" >>{folder}/out-$rank 2>&1 &
    pids+=($!)
done
echo "${{pids[@]}}" > {folder}/pids
wait
"""


@pytest.mark.faults("D6")
def test_a_time_limit_on_slurm_requeues_through_scontrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two nodes, whose srun, sbatch and scontrol are stand-ins; all else is real.
    from cit_train.launch.cluster import Cluster
    from cit_train.launch.executors import submit as submit_to_slurm
    from cit_train.launch.resources import Resources

    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 42\n")
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/scontrol\n')
    (programs / "srun").write_text(SRUN.format(folder=tmp_path))
    for path in programs.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    resources = Resources(cluster=Cluster(), nodes=2, seconds=600, signal_seconds=60)
    (tmp_path / "jobs").mkdir()
    job = make_job(tmp_path, 0, 60.0)
    job.decision_seconds = 30.0
    (launched,) = submit_to_slurm("tiny", [job], tmp_path / "jobs", resources)
    place = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2"}
    environment = {**os.environ, **place, "SLURM_JOB_NODELIST": "node[07-08]"}
    batch = ["bash", str(tmp_path / "jobs" / f"{launched.job_id}_submission.sh")]

    first = subprocess.Popen(batch, env=environment)
    wait_for(lambda: tries(tmp_path, 0) and tries(tmp_path, 1) and (tmp_path / "pids").exists())
    # SLURM's order at a preemption: TERM to everybody, then USR2 to what submitit runs.
    for rank in (0, 1):
        os.kill(tries(tmp_path, rank)[0]["pid"], signal.SIGTERM)
    bodies = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    for body in bodies:
        os.kill(body, signal.SIGTERM)
    stops = tmp_path / "stops"
    wait_for(lambda: stops.exists() and len(stops.read_text().split()) == 2)
    os.kill(bodies[0], signal.SIGUSR2)
    assert first.wait(20) == 0
    assert (tmp_path / "scontrol").read_text() == "requeue 42\n"
    assert not (tmp_path / "report.json").exists()

    assert subprocess.run(batch, env=environment, timeout=20).returncode == 0
    assert [len(tries(tmp_path, rank)) for rank in (0, 1)] == [2, 2]
    seen = tries(tmp_path, 1)[1]
    assert (seen["MASTER_ADDR"], seen["RANK"], seen["LOCAL_RANK"]) == ("node07", "1", "0")
    report = JobReport.read(tmp_path / "report.json")
    assert report is not None
    assert (report.job_id, report.code) == ("42", 0)
