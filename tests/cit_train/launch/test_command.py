"""`cit launch slurm` without a cluster: scripts, what is refused, and what sbatch is given."""

import json
import os
from pathlib import Path

import pytest

from cit_curate.errors import ConfigError
from cit_train.launch.command import main
from cit_train.launch.job import CitJob
from cit_train.launch.job_report import read_launch


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def script(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    main([*args, "--dry-run"])
    return capsys.readouterr().out.splitlines()


def test_a_single_run_is_one_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = script(capsys, "laptop", "--pool", "P", "--time", "1:00:00", "--partition", "gpu")
    assert lines[0] == "#!/bin/bash"
    for line in (
        "--partition=gpu",
        "--time=60",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--gpus-per-node=1",
        "--signal=USR2@120",
        "--requeue",
        "--job-name=cit-laptop",
        "--open-mode=append",
    ):
        assert f"#SBATCH {line}" in lines
    assert not any(line.startswith("#SBATCH --array") for line in lines)
    assert lines[-1].startswith("srun --unbuffered")
    assert lines[-1].endswith(f"-m submitit.core._submit {folder}/runs/laptop.jobs")
    assert not (folder / "runs").exists()


def test_several_nodes_have_one_rank_for_each_gpu_and_the_files_facts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "here.toml").write_text(
        'modules = ["cuda"]\nsbatch = ["--exclusive"]\ncpus_per_task = 6\n'
        'python = "/v/bin/python"\nenvironment = {A = "b c"}\n'
    )
    flags = ["--lanes", "16", "--nodes", "2", "--gpus-per-node", "8", "--time", "1-0"]
    lines = script(capsys, "default", "--pool", "P", *flags, "--cluster", "here.toml")
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--exclusive"):
        assert f"#SBATCH {line}" in lines
    assert lines.index("module load cuda") < lines.index("export A='b c'") < len(lines) - 1
    assert "--cpus-per-task=6 /v/bin/python -u -m submitit.core._submit" in lines[-1]


def test_a_sweep_is_an_array_with_one_run_each(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["alltask_5k_mr005", "--pool", "P", "--only", "pets,dtd", "--time", "60"]
    main([*args, "--array-parallelism", "1", "--dry-run", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert "#SBATCH --array=0-1%1\n" in shown["script"]
    place = f"{folder}/runs/alltask_5k_mr005"
    assert f"--output={place}.jobs/%A_%a_0_log.out\n" in shown["script"]
    assert shown["commands"] == {
        task: f"cit sweep alltask_5k_mr005 --pool P --only {task} --out {place}"
        for task in ("pets", "dtd")
    }
    assert "sbatch" in shown["missing"]


def test_an_evaluation_runs_on_one_rank(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["eval", "runs/m", "--tasks", "pets", "--data", "D", "--time", "60"]
    main([*args, "--gpus-per-node", "2", "--dry-run", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert "--ntasks-per-node=1\n" in shown["script"]
    command = f"cit eval runs/m --tasks pets --data D --out {folder}/runs/eval-m.json"
    assert shown["commands"] == {"eval-m": command}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["laptpo"], "did you mean laptop?"),
        (["laptop", "--partitoin", "gpu"], "no flag --partitoin; did you mean --partition?"),
        (["laptop", "--max-update", "3"], "did you mean --max-updates?"),
        (["laptop", "--overwrite"], "--overwrite is not for jobs"),
        (["laptop", "--only", "pets"], "--only chooses runs of a sweep"),
        (["laptop", "--max-updates", "0"], "--max-updates is 0"),
        (["laptop", "--time", "1x"], "write it as HH:MM:SS"),
        (["laptop"], "--time is missing"),
        (["laptop", "--time", "60", "--gpus-per-node", "2"], "2 ranks do not divide the 1 lane"),
        (["laptop", "--time", "60", "--out", "a%jb"], "replace what follows a %"),
        (["laptop", "--nodes", "2", "--lanes", "2", "--local"], "leave out --nodes"),
        (["eval", "m", "--data", "d", "--out", "x", "--time", "60"], "--out is for --tasks"),
        (["alltask_5k_mr005", "--only", "pest", "--time", "60"], "did you mean pets?"),
        (["alltask_5k_mr005", "--metadata", "a", "--time", "60"], "each run of a sweep has its"),
        (["laptop", "--time", "60"], "sbatch.* not on the PATH.*--dry-run.*--local"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(
    folder: Path, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ConfigError, match=message):
        main(args)
    assert not list(folder.iterdir())


def stand_in(folder: Path, text: str) -> None:
    """An `sbatch` that keeps the script it is given."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(f'#!/bin/sh\ncat "$1" > {folder}/given.sh\n{text}\n')
    (programs / "srun").write_text("#!/bin/sh\n")
    for path in programs.iterdir():
        path.chmod(0o755)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"


def test_sbatch_is_given_the_script_that_was_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    stand_in(folder, "echo Submitted batch job 4711")
    (folder / "here.toml").write_text('python = "/v/bin/python"')
    args = ["alltask_5k_mr005", "--only", "pets,dtd", "--time", "60", "--cluster", "here.toml"]
    shown = script(capsys, *args)
    main([*args, "--json"])
    submitted = json.loads(capsys.readouterr().out)
    assert (folder / "given.sh").read_text().splitlines() == shown
    assert "/v/bin/python" in shown[-1]
    jobs = submitted["jobs"]
    assert [(job["name"], job["job_id"]) for job in jobs] == [("pets", "4711_0"), ("dtd", "4711_1")]
    place = Path(submitted["jobs_folder"])
    assert [job.name for job in read_launch(place)] == ["pets", "dtd"]

    from submitit.core.utils import DelayedSubmission

    job = DelayedSubmission.load(place / "4711_1_submitted.pkl").function
    assert isinstance(job, CitJob)
    assert job.command[:2] == ("sweep", "alltask_5k_mr005")
    assert job.run == f"{folder}/runs/alltask_5k_mr005/dtd"


def test_a_refusal_of_sbatch_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    stand_in(folder, "echo 'sbatch: error: invalid partition specified' >&2; exit 1")
    with pytest.raises(ConfigError, match="invalid partition specified"):
        main(["laptop", "--time", "60"])
