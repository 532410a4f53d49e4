"""The run folder: what counts is what a manifest names."""

import json
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.records import PoolCursor
from cit_curate.run import ledger_tables
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import SCHEMAS


def used(keys: list[str], step: int) -> pa.Table:
    rows = [
        {"outer_step": step, "lane": 0, "pair_key": key, "times_used": 2, "first_update": 1}
        | {"last_update": 2}
        for key in keys
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["used"])


def new_run(folder: Path) -> Run:
    return Run.create(folder, config={"threshold": 0.5}, environment={})


def commit(run: Run, step: int, keys: list[str]) -> None:
    entry = run.write_table("used", used(keys, step), outer_step=step, lane=0)
    run.commit(
        Commit(outer_step=step, update=step + 1, cursors=(PoolCursor(0, 9),), files=(entry,))
    )


def test_counts_add_up_over_outer_steps(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    commit(run, 0, ["a_title", "b_title"])
    commit(run, 1, ["b_title"])
    assert Run.open(tmp_path / "run").counts() == {"a_title": 2, "b_title": 4}


@pytest.mark.faults("L4", "K7")
def test_what_is_written_but_not_committed_is_not_read_and_is_rolled_back(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    commit(run, 0, ["a_title"])
    run.write_table("used", used(["late_title"], 1), outer_step=1, lane=0)
    (run.path / "shards" / "step=000001").mkdir(parents=True)
    run.log({"update": 1, "kind": "train"})
    run.log({"update": 2, "kind": "train"})
    assert run.counts() == {"a_title": 2}
    last = run.roll_back()
    assert last is not None
    assert last.outer_step == 0
    assert not (run.path / "used" / "step=000001").exists()
    assert not (run.path / "shards" / "step=000001").exists()
    assert [record["update"] for record in run.metrics()] == [1]


def test_a_commit_comes_back_as_it_was(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    commit(run, 0, ["a_title"])
    (back,) = run.commits()
    assert back.cursors == (PoolCursor(0, 9),)
    assert back.files[0].path == "used/step=000000/lane=00000.parquet"


@pytest.mark.faults("L7")
def test_a_reader_sees_whole_outer_steps_while_they_are_written(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    keys = [f"{number}_title" for number in range(7)]
    done = threading.Event()

    def write() -> None:
        for step in range(40):
            commit(run, step, keys)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set() or not seen or seen[-1] < 40:
        rows = Run.open(run.path).read("used")
        assert len(rows) % 7 == 0
        whole = [step for step in range(len(rows) // 7) for _ in keys]
        assert rows["outer_step"].to_pylist() == whole
        seen.append(len(rows) // 7)
    writer.join()
    assert seen == sorted(seen)
    assert len({*seen}) > 2


def test_the_last_commits_are_read_alone(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for step in range(4):
        commit(run, step, [f"{step}_title"])
    first = tmp_path / "run" / "manifests" / "step=000000.json"
    first.write_text("no JSON")
    assert [each.outer_step for each in run.commits(last=2)] == [2, 3]
    with pytest.raises(DamagedError, match="step=000000"):
        run.commits(last=9)
    first.unlink()
    with pytest.raises(DamagedError, match="lacks outer step"):
        run.commits(last=2)


@pytest.mark.faults("L5")
def test_a_missing_manifest_in_between_is_damage(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    commit(run, 0, ["a_title"])
    commit(run, 1, ["b_title"])
    (run.path / "manifests" / "step=000000.json").unlink()
    with pytest.raises(DamagedError, match="lacks outer step 0"):
        run.commits()


@pytest.mark.faults("L5")
def test_a_deleted_segment_is_named(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    commit(run, 0, ["a_title"])
    next((run.path / "used").rglob("*.parquet")).unlink()
    with pytest.raises(DamagedError, match=r"lane=00000\.parquet is missing"):
        run.counts()


@pytest.mark.faults("G2c")
def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    new_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="not empty"):
        new_run(tmp_path / "run")
    Run.create(tmp_path / "run", config={}, environment={}, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not a run folder"):
        Run.create(tmp_path / "mine", config={}, environment={}, overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").exists()


def test_a_metrics_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.log({"update": 1})
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"update": 2, "lo')
    assert run.metrics() == [{"update": 1}]


def test_the_metrics_of_an_older_version_are_read_and_gone_on_with(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    lines = [{"update": 1, "loss": 0.5}, {"update": 2, "loss": 0.25}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.path / "metrics.jsonl").write_text(text)
    assert run.metrics() == lines
    run.roll_back(keep_update=2)
    run.log({"update": 3})
    assert run.metrics() == [*lines, {"update": 3}]
    assert (run.path / "metrics.jsonl").read_text().count("line_crc32") == 3


@pytest.mark.faults("L4")
def test_a_run_made_in_one_go_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def fail_after_a_commit() -> None:
        with Run.create_whole(path, config={}, environment={}) as run:
            commit(run, 0, ["a_title"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_a_commit()
    assert list(tmp_path.iterdir()) == []
    with Run.create_whole(path, config={}, environment={}) as run:
        commit(run, 0, ["a_title"])
        assert not path.exists()
    assert Run.open(path).counts() == {"a_title": 2}
    with (
        pytest.raises(ConfigError, match="not empty"),
        Run.create_whole(path, config={}, environment={}),
    ):
        raise AssertionError


@pytest.mark.faults("L8")
def test_batches_are_written_as_if_they_were_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_tables, "ROW_GROUP_ROWS", 10)
    rows = used([f"{number}_t" for number in range(35)], 0)
    contents = []
    for size in (1, 7, 10, 35):
        run = new_run(tmp_path / f"run-{size}")
        batches = rows.to_batches(max_chunksize=size)
        entry = run.write_batches("used", batches, outer_step=0, lane=0)
        assert entry.rows == 35
        run.commit(Commit(outer_step=0, update=1, cursors=(PoolCursor(),), files=(entry,)))
        assert run.read("used").equals(rows)
        contents.append((run.path / entry.path).read_bytes())
    assert len(set(contents)) == 1
    nothing = new_run(tmp_path / "none").write_batches("used", [], outer_step=0, lane=0)
    assert nothing.rows == 0
