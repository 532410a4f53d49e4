"""What ranks agree on, and how they miss one: real stores, and ranks as threads or processes."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import (
    assert_close_runs,
    assert_same_run,
    finish_ranks,
    start_ranks,
    status,
    told_by,
)
from torch.distributed import TCPStore

from cit_curate.errors import BadInputError, ConfigError, PeerLostError
from cit_curate.run.ledger import Run
from cit_train.config import RunConfig, replace_fields
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop import updates
from cit_train.ranks.stopping import StopSignals
from cit_train.ranks.world import World
from cit_train.recipes import default


@contextlib.contextmanager
def two_worlds(*, second_beats: bool = True, **seconds: float) -> Iterator[tuple[World, World]]:
    """Two ranks in one process that share a real store.

    Args:
        second_beats: Else the second is without a heartbeat, as if its process stood still.
        seconds: Limits of both.
    """
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    # As between processes, each has a connection of its own.
    other = TCPStore(
        "127.0.0.1", store.port, 2, wait_for_workers=False, timeout=timedelta(seconds=20)
    )
    first, second = (
        World(StopSignals(), rank=rank, size=2, store=each, **seconds)
        for rank, each in enumerate((store, other))
    )
    first.heartbeat.start()
    if second_beats:
        second.heartbeat.start()
    try:
        yield first, second
    finally:
        with ThreadPoolExecutor(2) as pool:  # rank 0 waits for the other one
            list(pool.map(World.close, (first, second)))


def both(one: Callable[[], Any], other: Callable[[], Any]) -> list[Any]:
    """What two ranks give that do this at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return [each.result(timeout=30) for each in (pool.submit(one), pool.submit(other))]


def test_a_world_of_one_rank_agrees_with_itself() -> None:
    world = World(StopSignals())
    assert world.is_first
    assert world.agree("anything", {"a": 1}) == [{"a": 1}]
    assert world.any_of(True, False) == [True, False]
    assert world.sum(2.5) == 2.5
    features = torch.ones(2, 3)
    assert world.gather(features, through=True) is features
    world.check_same("settings", {"a": 1})
    assert world.heartbeat.explain(RuntimeError("x")) is None
    failure = world.heartbeat.fail(3, "broken")
    assert (failure["rank"], failure["code"], failure["told_by"]) == (0, 3, 0)
    world.close()


@given(st.integers(1, 64), st.integers(1, 8))
def test_lanes_are_divided_into_equal_blocks_without_gap_or_overlap(share: int, size: int) -> None:
    worlds = [World(StopSignals(), rank=rank, size=size) for rank in range(size)]
    lanes = [lane for world in worlds for lane in world.lanes(share * size)]
    assert lanes == list(range(share * size))
    if size > 1:
        with pytest.raises(ConfigError, match=f"{size} ranks do not divide"):
            worlds[0].lanes(share * size + 1)


def test_ranks_exchange_json_by_rank_many_times() -> None:
    with two_worlds() as (one, other):

        def talk(world: World) -> list[Any]:
            return [world.agree("it", {"rank": world.rank, "turn": turn}) for turn in range(50)]

        first, second = both(lambda: talk(one), lambda: talk(other))
        assert first == second
        assert first[7] == [{"rank": 0, "turn": 7}, {"rank": 1, "turn": 7}]


class WrittenStream:
    """A shard stream that has written so many pairs."""

    error = None
    image_problems = "none of the images can be opened"

    def __init__(self, num_pairs: int) -> None:
        self.rows = range(num_pairs)
        self.num_written = num_pairs

    def has_written(self, num_pairs: int, *, wait_seconds: float) -> bool:
        return len(self.rows) >= num_pairs

    def finish(self) -> None:
        pass


def updates_of(world: World, pairs: list[int], images: list[int], config: RunConfig) -> Any:
    """Updates of an outer step in which lanes select `pairs` and have `images`, or its error.

    The loader's next batch after them must be the next outer step's.
    """
    session: Any = SimpleNamespace(
        world=world,
        config=config,
        curator=SimpleNamespace(pools=SimpleNamespace(info_commands="")),
        stop=world.stop,
        saver=SimpleNamespace(is_due=lambda update: False),
    )
    state, size = TrainState(0, 0, ()), config.curate.batch_size
    selections: Any = [SimpleNamespace(rows=range(number)) for number in pairs]
    try:
        num_updates = updates._num_updates(session, state, selections)
        most = num_updates * config.train.accumulate * size
        lanes: Any = [WrittenStream(min(number, most)) for number in images]
        num_batches = min(len(lane.rows) // size for lane in lanes)
        batches = iter([*["this step"] * num_batches * len(lanes), "next step"])
        streams = updates.ShardWriters(lanes, selections, 0, num_updates, 0.0, 0.0)
        planned = list(updates.updates(batches, streams, session, state))  # type: ignore[arg-type]
        return len(planned), next(batches)
    except BadInputError as error:
        return str(error)


@pytest.mark.faults("D1")
def test_ranks_with_unequal_numbers_of_pairs_and_images_make_equally_many_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=2, max_size=2)

    def any_of(world: World, *flags: bool) -> list[bool]:
        """As the collective, which threads of one process have none of."""
        told = world.agree("flags", flags)
        return [any(of_ranks) for of_ranks in zip(*told, strict=True)]

    monkeypatch.setattr(World, "any_of", any_of)
    with two_worlds() as (one, other):

        @settings(deadline=None, max_examples=60)
        @given(numbers, numbers, st.integers(1, 5), st.integers(1, 3))
        def check(
            first: list[tuple[int, float]],
            second: list[tuple[int, float]],
            batch_size: int,
            accumulate: int,
        ) -> None:
            config = replace_fields(
                default(),
                batch_size=batch_size,
                accumulate=accumulate,
                curate_every=100,
                on_shortfall="train",
            )
            lanes = [*first, *second]
            pairs = [number for number, _ in lanes]
            images = [int(number * opened) for number, opened in lanes]
            made = both(
                lambda: updates_of(one, pairs[:2], images[:2], config),
                lambda: updates_of(other, pairs[2:], images[2:], config),
            )
            assert made[0] == made[1]
            num_updates = min(images) // batch_size // accumulate
            if num_updates:
                assert made[0] == (num_updates, "next step")
            else:
                assert "fewer pairs than" in made[0] or "too few images" in made[0]

        check()


@pytest.mark.faults("D7")
def test_a_rank_that_differs_is_named_with_the_field_and_both_values() -> None:
    with two_worlds() as (one, other):
        for world, value in ((one, 0.5), (other, 0.6)):
            world.heartbeat.progress["value"] = value

        def compare(world: World) -> str:
            seen = {"threshold": world.heartbeat.progress["value"], "seed": 1}
            with pytest.raises(ConfigError) as caught:
                world.check_same("settings", seen)
            return str(caught.value)

        told = both(lambda: compare(one), lambda: compare(other))
        assert told == ["rank 0 and rank 1 differ in their settings: threshold: 0.5 and 0.6"] * 2


@pytest.mark.faults("D2")
def test_the_first_failure_counts_and_ends_the_waiting_of_the_others() -> None:
    with two_worlds() as (one, other):
        other.beat("training", outer_step=2, update=9)

        def wait() -> str:
            with pytest.raises(PeerLostError) as caught:
                one.agree("curated", None)
            return str(caught.value)

        told, failure = both(wait, lambda: other.heartbeat.fail(3, "no such image"))
        assert told == "rank 1 failed at outer step 2, update 9: no such image"
        assert failure["told_by"] == 1
        assert one.heartbeat.fail(6, "later") == failure


@pytest.mark.faults("D2")
@pytest.mark.slow
def test_a_rank_that_is_silent_is_named() -> None:
    with two_worlds(second_beats=False, peer_seconds=1) as (one, _):
        started = time.monotonic()
        with pytest.raises(PeerLostError, match=r"rank 1 failed .* it no longer responds"):
            one.agree("curated", None)
        assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_rank_that_lives_but_is_too_slow_is_named_with_what_it_does() -> None:
    with two_worlds(barrier_seconds=1.2) as (one, other):
        other.beat("curating lane 1: 3 of 99 captions kept", outer_step=4, update=12)
        with pytest.raises(PeerLostError) as caught:
            one.agree("curated", None)
    assert "rank 1 is curating lane 1: 3 of 99 captions kept (outer step 4, update 12)" in str(
        caught.value
    )
    assert "--barrier-seconds" in str(caught.value)


def test_rank_0_stays_until_the_others_have_left() -> None:
    with two_worlds() as (one, other):
        left: list[int] = []

        def leave(world: World, *, after: float) -> None:
            time.sleep(after)
            world.close()
            left.append(world.rank)
            world._store = None

        both(lambda: leave(one, after=0), lambda: leave(other, after=0.5))
        assert left == [1, 0]


@pytest.mark.faults("D5")
def test_a_store_that_is_gone_is_a_lost_peer() -> None:
    with two_worlds() as (one, _):

        def gone(*_: object) -> None:
            raise RuntimeError("Broken pipe\nframe #0")

        one._store = type("Gone", (), {"set": gone, "add": gone})()
        with pytest.raises(PeerLostError, match=r"the launcher or rank 0 is gone: Broken pipe$"):
            one.agree("curated", None)
        assert one.heartbeat.is_cut_off


@pytest.mark.faults("D2")
@pytest.mark.slow
def test_a_process_that_hangs_is_ended_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cit_train.ranks.heartbeat._LAST_RESORT_SECONDS", 0.1)
    ended, told = threading.Event(), []
    monkeypatch.setattr("cit_train.ranks.heartbeat.os._exit", lambda code: ended.set())
    with two_worlds(second_beats=False, peer_seconds=1) as (one, _):
        one.heartbeat.last_words = told.append
        assert ended.wait(10)
    assert [failure["rank"] for failure in told] == [1]
    assert told[0]["code"] == 6


# 2 outer steps of 4 updates on 4 lanes.
LANES: dict[str, Any] = {
    "lanes": 4,
    "batch_size": 2,
    "pairs_per_shard": 4,
    "curate_every": 4,
    "max_updates": 8,
    "eval_every": 4,
    "peer_seconds": 20,
}


@pytest.mark.faults("K4")
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_on_with_another_number_of_ranks_from_within_an_outer_step(
    world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for ranks, update in ((2, 1), (1, 5)):
        fault = {"moment": "train", "update": update, "act": "SIGTERM"}
        codes = finish_ranks(start_ranks(world, out, ranks=ranks, faults=[fault], **LANES))
        assert codes == [75] * ranks, told_by(out).read_text()
        assert status(out)["step"] == update + 1
    assert finish_ranks(start_ranks(world, out, ranks=4, **LANES)) == [0] * 4
    whole = tmp_path / "whole"
    assert finish_ranks(start_ranks(world, whole, ranks=1, **LANES)) == [0]
    assert_close_runs(Run.open(whole), Run.open(out))
    assert len(Run.open(out).read("rejects"))


@pytest.mark.faults("K3")
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fields", [{"micro_batch": 1}, {"local_loss": True}, {"accumulate": 2}])
def test_settings_that_reach_over_ranks_can_be_stopped_and_go_on_exactly(
    world: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    fault = {"rank": 1, "moment": "train", "update": 1, "act": "SIGTERM"}
    shorter = {**LANES, **fields, "curate_every": 2, "max_updates": 4}
    codes = finish_ranks(start_ranks(world, out, ranks=2, faults=[fault], **shorter))
    assert codes == [75, 75], told_by(out).read_text()
    assert finish_ranks(start_ranks(world, out, ranks=2, **shorter)) == [0, 0]
    assert finish_ranks(start_ranks(world, whole, ranks=2, **shorter)) == [0, 0]
    assert_same_run(whole, out)
