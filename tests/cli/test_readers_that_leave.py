"""A command whose reader has left (`| head`) works to its end, and ends with its own code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from cli_runs import CIT, Cit, imports_of, train_flags

FRESH = [sys.executable, "-m", "cit_train.cli"]


def leave(*args: object, stdout: bool = False, stderr: bool = False) -> int:
    """The exit code of `cit` when nobody has ever read the streams that are named."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = forked.start(
            CIT,
            *args,
            imported=imports_of(*args),
            stdout=writer if stdout else subprocess.DEVNULL,
            stderr=writer if stderr else subprocess.DEVNULL,
        )
    finally:
        os.close(writer)
    return process.wait()


@pytest.mark.faults("G3")
@pytest.mark.slow
def test_training_goes_on_when_the_reader_of_all_that_it_says_has_left(
    tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = [*train_flags(tiny), "--max-updates", "6", "--out", out, "--json"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    training = forked.start(CIT, "train", "default", *flags, **pipe)
    assert training.stdout is not None
    head = subprocess.run(["head", "-1"], stdin=training.stdout, capture_output=True, text=True)
    training.stdout.close()
    assert training.wait(timeout=120) == 0
    assert len(head.stdout.splitlines()) == 1
    status = json.loads((out / "status.json").read_text())
    assert (status["code"], status["reason"], status["step"]) == (0, "finished", 6)


@pytest.mark.faults("G3")
@pytest.mark.slow
def test_an_error_keeps_its_code_when_the_reader_of_stderr_has_left(
    tiny: Path, tmp_path: Path
) -> None:
    assert leave("pool", "nothing", stderr=True) == 2
    assert leave("pool", "info", tmp_path / "nothing", stderr=True) == 2
    assert leave("train", "laptop", "--batch-size", "many", stderr=True) == 2  # said by tyro
    assert leave("train", "default", *train_flags(tiny, "nothing"), stderr=True) == 2


@pytest.mark.faults("G3")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_damage_keeps_its_code_when_the_reader_of_stdout_has_left(
    tmp_path: Path, flags: list[str]
) -> None:
    from tiny import make_pool

    pool = make_pool(tmp_path / "data", num_images=4)
    part = next((pool / "pairs").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    assert leave("pool", "verify", pool, *flags, stdout=True, stderr=True) == 4


@pytest.mark.faults("G3")
def test_a_pipe_to_another_process_that_breaks_is_no_reader_that_leaves(
    cit: Cit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("cit_curate.run.commands.report", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = cit("report")
    assert ended.code == 1
    assert "Broken pipe" in ended.err


@pytest.mark.faults("G3")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_costs_the_result_but_not_the_code_of_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([*FRESH, "pool", "nothing"], stderr=full).returncode == 2
        ended = subprocess.run([*FRESH, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 5
    assert "No space left" in ended.stderr
