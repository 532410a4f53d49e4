"""`--ahead 1`: selections one outer step stale, the same however their scores came about."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from faults import plant
from tiny import make_config
from tiny_runs import (
    assert_same_run,
    finish,
    finish_ranks,
    processes_of,
    start_fresh,
    start_ranks,
    start_training,
    status,
    told_by,
    wait_for,
)

from cit_curate.curation.curator import Curator
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import Scores
from cit_curate.errors import ConfigError, DamagedError, PeerLostError
from cit_curate.run.ledger import Run
from cit_train.config import RunConfig
from cit_train.loop import ahead, ahead_workers
from cit_train.loop.ahead_workers import LanePrefetch
from cit_train.outer_loop import train
from cit_train.ranks.stopping import StoppedError

# 3 outer steps of 2 updates.
FIELDS: dict[str, Any] = {"ahead": 1}


class Inline(Executor):
    """In the place of processes, which take seconds to start: the same functions, at once.

    Not in threads: to open a model draws from torch's generator, which dropout of the trainer uses.
    """

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


@contextmanager
def inline(num_workers: int) -> Iterator[Executor]:
    """For `workers_beside`."""
    yield Inline()


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only runs in processes of their own start others."""
    monkeypatch.setattr(ahead, "workers_beside", inline)
    monkeypatch.setattr(ahead, "ThreadPoolExecutor", lambda *args, **kwargs: Inline())


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the run with these fields that nobody stopped."""

    @cache
    def run(**fields: Any) -> Path:
        out = tmp_path_factory.mktemp("whole") / "run"
        train(make_config(world, **{**FIELDS, **fields}), out)
        return out

    return run


def train_with(config: RunConfig, out: Path, **fault: Any) -> None:
    """One try, in which this happens."""
    with pytest.MonkeyPatch.context() as patch:
        plant(fault, patch.setattr)
        train(config, out, resume=True)


def encoders(run: Run) -> dict[int, str]:
    """The encoder that each outer step selected with."""
    rows = run.read("selections")
    found = {}
    for step in pc.unique(rows["outer_step"]).to_pylist():
        (found[step],) = (
            rows.filter(pc.equal(rows["outer_step"], step))["encoder"].unique().to_pylist()
        )
    return found


@pytest.mark.slow
def test_each_outer_step_selects_with_the_encoder_of_the_one_before(
    finished: Path, whole: Callable[..., Path]
) -> None:
    stale, exact = Run.open(whole()), Run.open(finished)
    of_stale, of_exact = encoders(stale), encoders(exact)
    assert of_stale[0] == of_stale[1] == of_exact[0]
    # The first outer step is trained on the same pairs, so its end is the same encoder.
    assert of_stale[2] == of_exact[1] != of_exact[2]
    for run, expected in ((stale, [0, 2, 2]), (exact, [0, 0, 0])):
        lines = [line for line in run.metrics() if line["kind"] == "outer_step"]
        assert [line["staleness"] for line in lines] == expected
    assert sum(stale.counts().values()) == 6 * 8


def test_a_stale_selection_is_the_exact_one_with_that_encoder(
    world: Path, whole: Callable[..., Path]
) -> None:
    stale = Run.open(whole())
    cursors = stale.commits()[0].cursors
    config = make_config(world, text_encoder=str(world / "text"))
    curator = Curator(_pool(config), config.metadata, config.curate)
    from cit_curate.text_encoder.encoder import TextEncoder

    encoder = TextEncoder.load(config.text)
    assert encoder.fingerprint == encoders(stale)[1]
    scores = curator.lane_scores(encoder, curator.refresh(encoder))
    step = OuterStep(1, 2, encoder.fingerprint)
    (selection,) = curator.run(step, cursors, scores, num_pairs=config.budget)
    rows = stale.read("selections")
    rows = rows.filter(pc.equal(rows["outer_step"], 1))
    rejects = stale.read("rejects")
    bad = rejects.filter(pc.equal(rejects["outer_step"], 1))["scan_position"]
    wanted = selection.rows.filter(pc.invert(pc.is_in(selection.rows["scan_position"], bad)))
    both = rows.filter(pc.is_in(rows["scan_position"], wanted["scan_position"]))
    for name in ("scan_position", "pair_key", "similarity", "metadata_id", "reason"):
        assert both[name].to_pylist() == wanted[name].to_pylist(), name


def _pool(config: RunConfig) -> Any:
    from cit_curate.pool.mixture import PoolMixture

    return PoolMixture.open(config.pool)


def test_scores_do_not_depend_on_who_asks_when_for_how_many(whole: Callable[..., Path]) -> None:
    """Planned ahead, at need, or both: the same numbers by scan position."""
    asked = []

    class Counted(Executor):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            asked.append(args)
            return one.submit(function, *args, **kwargs)

    with (
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(1) as queue,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(ahead_workers, "RANGE_CAPTIONS", 8)
        patch.setattr(ahead_workers, "score_saved", _squares)
        planned = LanePrefetch(None, 0, Counted())  # type: ignore[arg-type]
        planned.plan(5, 25, queue)
        at_need = LanePrefetch(None, 0, Counted())  # type: ignore[arg-type]
        for start, stop in ((5, 9), (9, 30), (30, 31), (64, 70)):
            expected = np.arange(start, stop) ** 2
            for lane in (planned, at_need):
                scores = lane(_window(start, stop), ScanTotals())
                assert scores.similarity.tolist() == expected.tolist()
                assert scores.nearest.tolist() == [-n for n in range(start, stop)]
                assert len(lane._ranges) <= 4, "what was given is let go"
    assert len(asked) == len(set(asked)) + 3, "both lanes ask for what follows the plan, once"


def _squares(saved: Any, lane: int, start: int, stop: int) -> Any:
    positions = np.arange(start, stop)
    return Scores((positions**2).astype(np.float32), -positions)


def _window(start: int, stop: int) -> Any:
    from cit_curate.records import CaptionBatch, PoolCursor

    places = np.arange(start, stop)
    return [CaptionBatch(None, places, places, places, PoolCursor(0, stop))]


def test_what_is_no_longer_needed_is_not_scored() -> None:
    started, go = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        started.set()
        go.wait(5)
        return _squares(*args)

    with (
        ThreadPoolExecutor(1) as workers,
        ThreadPoolExecutor(1) as queue,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(ahead_workers, "RANGE_CAPTIONS", 8)
        patch.setattr(ahead_workers, "score_saved", slow)
        lane = LanePrefetch(None, 0, workers)  # type: ignore[arg-type]
        lane.plan(0, 80, queue)
        assert started.wait(5)
        lane.cancel()
        assert [planned.stop for planned in lane._ranges] == [8]
        go.set()
        assert lane(_window(4, 12), ScanTotals()).nearest.tolist() == [-n for n in range(4, 12)]


@pytest.mark.faults("K3")
@pytest.mark.parametrize(
    "fields",
    [
        {"lanes": 2, "batch_size": 4, "pairs_per_shard": 5, "collection": "multiset"},
        {"skip_until": 3},
        {"project_embeddings": True, "pooling": "mean", "max_passes": 9},
        {"on_shortfall": "train", "max_passes": 1, "threshold": 0.99, "curate_every": 50},
        {"texts": "every", "order": "sequential"},
    ],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.slow
def test_stopped_in_the_middle_and_between_nothing_changes_whatever_the_settings(
    world: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    config, out = make_config(world, **{**FIELDS, **fields}), tmp_path / "run"
    for moment, update in (("curate", 2), ("train", 2)):
        with contextlib.suppress(StoppedError):
            train_with(config, out, moment=moment, update=update, act="SIGTERM")
        assert status(out)["code"] in (0, 75)
    train(config, out, resume=True)
    train(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.faults("K1", "K3")
@pytest.mark.slow
def test_a_broken_run_goes_on_with_the_checkpoints_that_it_needs(
    world: Path, whole: Callable[..., Path], tmp_path: Path
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    for update in (1, 2, 5):
        with pytest.raises(RuntimeError, match="planted"):
            train_with(config, out, moment="train", update=update, act="raise")
    kept = {path.name for path in (out / "checkpoints").glob("update-*")}
    assert kept >= {"update-000002", "update-000004"}
    train(config, out, resume=True)
    assert_same_run(whole(), out)


def test_a_missing_checkpoint_to_select_with_is_told_before_anything_is_done(
    world: Path, tmp_path: Path
) -> None:
    config, out = make_config(world, **FIELDS), tmp_path / "run"
    with pytest.raises(StoppedError):
        train_with(config, out, moment="curate", update=2, act="SIGTERM")
    (out / "checkpoints" / "update-000000").rename(tmp_path / "aside")
    with pytest.raises(DamagedError, match="update-000000 is missing"):
        train(config, out, resume=True)


@pytest.mark.slow
def test_without_it_no_process_is_started_and_no_checkpoint_of_the_start_is_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(num_workers: int) -> Any:
        raise AssertionError

    monkeypatch.setattr(ahead, "workers_beside", never)
    train(make_config(world, max_updates=4), tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("update-*"))
    assert "update-000000" not in names
    # Nor where everything passes, or in a run of one outer step.
    train(make_config(world, **FIELDS, skip_until=6), tmp_path / "passing")
    train(make_config(world, **FIELDS, max_updates=2), tmp_path / "one")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"ahead": 2}, "--ahead is 2"),
        ({"ahead": 1, "ahead_workers": 0}, "--ahead-workers is 0"),
        ({"ahead": 1, "curation": "none"}, "--curation none does not"),
        ({"ahead": 1, "selection": "runs/x"}, "--selection does not"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    world: Path, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        make_config(world, **fields)
    assert caught.value.exit_code == 2


def test_a_device_that_is_not_there_is_refused_before_anything_is_done(
    world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        train(make_config(world, **FIELDS, curate_device="nonsense"), tmp_path / "run")


@pytest.mark.slow
def test_a_run_of_before_these_settings_is_taken_up_as_if_it_had_their_defaults(
    world: Path, tmp_path: Path
) -> None:
    from cit_curate.storage.durable import read_json, write_json

    config, out = make_config(world), tmp_path / "run"
    with pytest.raises(StoppedError):
        train_with(config, out, moment="train", update=2, act="SIGTERM")
    saved = {k: v for k, v in read_json(out / "config.json").items() if "ahead" not in k}
    write_json(out / "config.json", {k: v for k, v in saved.items() if k != "curate_device"})
    with pytest.raises(ConfigError, match="ahead: 0 then, 1 now"):
        train(make_config(world, ahead=1), out, resume=True)
    train(config, out, resume=True)


@pytest.mark.slow
def test_the_first_batch_waits_for_the_first_shard_and_not_for_the_last(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cit_train.streaming import shard_stream

    add = shard_stream.ShardWriterThread._add

    def slow(self: Any, writer: Any, sample: Any) -> None:
        if len(writer.entries) > 0:  # only what comes after the first shard
            threading.Event().wait(0.05)
        add(self, writer, sample)

    monkeypatch.setattr(shard_stream.ShardWriterThread, "_add", slow)
    run = train(make_config(world, max_updates=2), tmp_path / "run")
    [line] = [line for line in run.metrics() if line["kind"] == "outer_step"]
    # Who reads the first shard may come before who notes that it is closed.
    assert line["select_seconds"] <= line["first_batch_seconds"]
    assert line["last_shard_seconds"] - line["first_batch_seconds"] > 0.2
    assert line["last_shard_seconds"] - line["first_shard_seconds"] > 0.2


@pytest.mark.faults("L8")
@pytest.mark.slow
def test_the_processes_give_what_the_functions_give_here(
    world: Path, whole: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start_fresh(world, out, hash_seed="5", **FIELDS, ahead_workers=2)
    assert finish(process) == 0, told_by(out).read_text()
    assert_same_run(whole(), out)


@pytest.mark.faults("K1", "K3", "S6", "D4")
@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("moment", "update", "act"),
    [
        ("curate", 2, "SIGKILL"),
        ("stream", 2, "SIGKILL"),
        ("train", 3, "SIGKILL"),
        ("save", 4, "SIGKILL"),
        ("curate", 4, "groupSIGTERM"),
        ("train", 3, "groupSIGINT"),
    ],
)
def test_killed_or_stopped_with_its_processes_it_goes_on_and_leaves_none(
    world: Path, whole: Callable[..., Path], tmp_path: Path, moment: str, update: int, act: str
) -> None:
    out = tmp_path / "run"
    fault = {"moment": moment, "update": update, "act": act}
    process = start_training(world, out, faults=[fault], save_every=1, **FIELDS)
    children: set[int] = set()
    while process.poll() is None:
        children |= children_of(process.pid)
        threading.Event().wait(0.01)
    assert process.returncode == (-signal.SIGKILL if act == "SIGKILL" else 75), told_by(
        out
    ).read_text()
    assert "Traceback" not in told_by(out).read_text()
    assert children, "it must have had processes for this to mean something"
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), seconds=15)
    train(make_config(world, save_every=1, **FIELDS), out, resume=True)
    assert_same_run(whole(), out)
    wait_for(lambda: not processes_of(out), seconds=5)


@pytest.mark.faults("S5")
@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_which_goes_on_afterwards(
    world: Path, whole: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fault = {"moment": "stream", "update": 0, "act": "sleep5"}
    process = start_training(world, out, faults=[fault], **FIELDS)
    wait_for(lambda: scorers_of(process.pid), seconds=60)
    for pid in scorers_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    assert finish(process) == PeerLostError.exit_code
    assert "a process of --ahead was killed" in told_by(out).read_text()
    assert status(out)["resumable"]
    train(make_config(world, **FIELDS), out, resume=True)
    assert_same_run(whole(), out)


@pytest.mark.faults("D1", "K3")
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_ranks_score_ahead_each_for_its_own_lanes(world: Path, tmp_path: Path) -> None:
    fields = {**FIELDS, "lanes": 2, "batch_size": 4, "pairs_per_shard": 5}
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert finish_ranks(start_ranks(world, whole, ranks=2, **fields)) == [0, 0], told_by(
        whole
    ).read_text()
    fault = {"rank": 1, "moment": "train", "update": 3, "act": "SIGTERM"}
    codes = finish_ranks(start_ranks(world, out, ranks=2, faults=[fault], **fields))
    assert codes == [75, 75], told_by(out).read_text()
    assert finish_ranks(start_ranks(world, out, ranks=2, **fields)) == [0, 0]
    assert_same_run(whole, out)
    assert set(Run.open(out).read("selections")["lane"].to_pylist()) == {0, 1}


def children_of(pid: int) -> set[int]:
    """The processes that this one has started, and that still run."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rsplit(")", 1)[1].split()[1] == str(pid):
                found.add(int(path.parent.name))
    return found


def scorers_of(pid: int) -> list[int]:
    """Those of its processes that were spawned by multiprocessing, and are no resource tracker."""
    found = []
    for child in children_of(pid):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found
