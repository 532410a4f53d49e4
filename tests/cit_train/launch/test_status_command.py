"""`cit sweep status`: waiting, running, stopped, finished and failed runs, from their folders."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cit_curate.errors import ConfigError
from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Commit, Run
from cit_curate.storage.lock import writer_lock
from cit_train.launch.job_report import (
    JobReport,
    LaunchedJob,
    jobs_folder,
    report_path,
    write_launch,
)
from cit_train.launch.status_command import status

NAMES = ("done", "cheese", "going", "halted", "later", "refused", "torn")


def make_run(path: Path, commits: int, *, status_: dict[str, Any] | None = None) -> Run:
    """A run of 6 updates, 2 an outer step, with so many outer steps committed."""
    run = Run.create(path, config={"max_updates": 6}, environment={})
    for number in range(commits):
        best = {"metric": "accuracy", "value": 40.0 + number, "update": 2 * number + 2}
        run.log({"kind": "train", "update": 2 * number + 2, "loss": 1.0})
        run.log({"kind": "eval", **best})
        step = Commit(
            outer_step=number,
            update=2 * number + 2,
            cursors=(PoolCursor(),),
            files=(),
            checkpoint=None,
            best=best,
        )
        run.commit(step)
        os.utime(path / "manifests" / f"step={number:06d}.json", (1000, 1000 + 4 * number))
    if status_ is not None:
        (path / "status.json").write_text(json.dumps(status_))
    return run


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "sweep"
    jobs = jobs_folder(folder)
    (jobs / "reports").mkdir(parents=True)
    write_launch(
        jobs,
        [
            LaunchedJob(
                name=name, run=str(folder / name), command="…", job_id=f"9_{number}", log="a.log"
            )
            for number, name in enumerate(NAMES)
        ],
    )
    make_run(folder / "done", 3, status_={"code": 0, "message": ""})
    make_run(folder / "cheese", 1, status_={"code": 4, "message": "the pool is cheese"})
    make_run(folder / "going", 2).log({"kind": "train", "update": 5, "loss": 1.0})
    make_run(folder / "halted", 2, status_={"code": 75, "message": "USR2"})
    make_run(folder / "torn", 1)
    (folder / "torn" / "manifests" / "step=000000.json").write_text("{")
    JobReport(job_id="9_5", log="a.log", code=2, reason="there is no file x").write(
        report_path(jobs, "refused")
    )
    with writer_lock(folder / "going"):
        yield folder


def rows(capsys: pytest.CaptureFixture[str], what: Path) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    status(str(what), json=True)
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_state_is_told_with_its_numbers(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rows(capsys, sweep)
    assert list(table) == list(NAMES)
    states = {name: row["state"] for name, row in table.items()}
    assert states == {
        "done": "finished",
        "cheese": "failed",
        "going": "running",
        "halted": "stopped",
        "later": "waiting",
        "refused": "failed",
        "torn": "failed",
    }
    going = table["going"]
    assert (going["outer_step"], going["update"], going["max_updates"]) == (2, 5, 6)
    assert going["updates_per_second"] == pytest.approx(0.5)
    assert (going["metric"], going["value"], going["job_id"]) == ("accuracy", 41.0, "9_2")
    assert table["done"]["value"] == 42.0
    assert table["cheese"]["reason"] == "the pool is cheese"
    assert table["refused"]["reason"] == "there is no file x"
    assert "step=000000.json is damaged" in table["torn"]["reason"]
    assert table["later"]["max_updates"] is None


def test_the_table_ends_with_reasons_and_a_summary(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status(str(sweep))
    text = capsys.readouterr().out
    assert "cheese failed: the pool is cheese" in text
    assert "1 finished, 3 failed, 1 running, 1 stopped, 1 waiting" in text


def test_a_run_whose_owner_is_gone_is_stopped_and_a_silent_one_is_marked(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = sweep / ".going.lock"
    lock.unlink()  # what follows is left by others, and held by nobody
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    assert rows(capsys, sweep)["going"]["state"] == "stopped"
    lock.write_text(json.dumps({"pid": 1, "host": "another"}))
    for path in (sweep / "going").rglob("*.json*"):
        os.utime(path, (1000, 1000))
    going = rows(capsys, sweep)["going"]
    assert going["state"] == "running"
    assert "it may have been killed" in going["reason"]


def test_one_run_has_a_table_of_its_own_also_before_it_starts(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(rows(capsys, sweep / "done")) == ["done"]
    run = tmp_path / "single"
    jobs_folder(run).mkdir()
    write_launch(
        jobs_folder(run),
        [LaunchedJob(name="single", run=str(run), command="…", job_id="7", log="b.log")],
    )
    single = rows(capsys, run)["single"]
    assert (single["state"], single["job_id"], single["log"]) == ("waiting", "7", "b.log")
    assert list(rows(capsys, tmp_path)) == ["single"]


def test_a_sweep_that_was_never_started_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status("alltask_5k_mr005", json=True)
    table = json.loads(capsys.readouterr().out)
    assert len(table) == 26
    assert {row["state"] for row in table} == {"waiting"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is neither a sweep, a run nor a folder of runs"):
        status(str(tmp_path / "nothing"))
