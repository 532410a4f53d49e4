"""`cit sweep`: every run is made, a failed one is told, and the same command goes on."""

import json
from pathlib import Path

import pytest
from tiny import make_config

from cit_curate.errors import ConfigError
from cit_train import outer_loop
from cit_train.config import RunConfig, replace_fields
from cit_train.launch import sweep_command
from cit_train.ranks.stopping import StoppedError
from cit_train.sweeps import Sweep


@pytest.fixture
def sweep(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of two runs that work and one whose class names are missing, in the middle."""

    def runs(config: RunConfig) -> dict[str, RunConfig]:
        return {
            "low": replace_fields(config, threshold=0.4),
            "broken": replace_fields(config, metadata="no-such-file.txt"),
            "high": replace_fields(config, threshold=0.6),
        }

    config = make_config(world, max_updates=2)
    monkeypatch.setattr(
        sweep_command, "SWEEPS", {"tiny": Sweep(lambda: config, runs, "Three runs.")}
    )


def rows(out: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    with pytest.raises(ConfigError, match="no-such-file"):
        sweep_command.main(["tiny", "--out", str(out), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("sweep")
def test_a_failed_run_does_not_stop_the_others_and_decides_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows(tmp_path / "runs", capsys)
    assert [(row["name"], row["state"], row["updates"]) for row in table] == [
        ("low", "finished", 2),
        ("broken", "failed", 0),
        ("high", "finished", 2),
    ]
    assert all(row["metric"] == "accuracy" for row in table if row["state"] == "finished")
    made = (tmp_path / "runs" / "low" / "metrics.jsonl").stat().st_mtime_ns
    assert [row["state"] for row in rows(tmp_path / "runs", capsys)] == [
        row["state"] for row in table
    ]
    assert (tmp_path / "runs" / "low" / "metrics.jsonl").stat().st_mtime_ns == made


@pytest.mark.usefixtures("sweep")
@pytest.mark.parametrize("flag", ["--metadata", "--eval-task"])
def test_a_flag_that_every_run_would_replace_is_refused(tmp_path: Path, flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} pets: each run of a sweep has its own"):
        sweep_command.main(["tiny", "--out", str(tmp_path / "runs"), flag, "pets"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("sweep")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise StoppedError

    monkeypatch.setattr(outer_loop, "train", stopped)
    with pytest.raises(StoppedError, match="run 1 of 3; the same command goes on"):
        sweep_command.main(["tiny", "--out", str(tmp_path / "runs")])
