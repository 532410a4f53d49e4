"""The batches of one outer step: a shard stream for each lane, and the updates they make."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cit_curate.curation.curator import LaneSelection
from cit_curate.errors import BadInputError, DamagedError, PeerLostError
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.session import Session
from cit_train.ranks.stopping import StoppedError
from cit_train.streaming.batches import LaneBatch
from cit_train.streaming.disk_room import DiskRoom
from cit_train.streaming.shard_stream import ShardWriterThread, image_threads


@dataclass
class ShardWriters:
    """The shard writers of one outer step, one for each lane of this rank.

    Attributes:
        lanes: The writers.
        selections: What they write, by lane.
        first_update: Updates made before this outer step.
        num_updates: Updates that its pairs are enough for, on all ranks.
        began_at: When its selection began, in `time.monotonic`.
        opened_at: When it was there.
        first_batch_at: When the first batch was there to be trained on; None before.
    """

    lanes: list[ShardWriterThread]
    selections: Sequence[LaneSelection]
    first_update: int
    num_updates: int
    began_at: float
    opened_at: float
    first_batch_at: float | None = None

    def finish(self) -> None:
        """Wait until every shard is written, and raise what went wrong with one."""
        for stream in self.lanes:
            stream.finish()

    def have_written(self, num_pairs: int, *, wait_seconds: float) -> bool:
        """Wait until so many pairs of each lane are written; False when a lane ends with fewer."""
        return all(each.has_written(num_pairs, wait_seconds=wait_seconds) for each in self.lanes)

    def seconds(self, stream: ShardWriterThread) -> dict[str, Any]:
        """When a lane's pairs were selected and could be trained on, since its selection began."""
        moments = {
            "select_seconds": self.opened_at,
            "first_shard_seconds": stream.first_shard_at,
            "first_batch_seconds": self.first_batch_at,
            "last_shard_seconds": stream.last_shard_at,
        }
        return {name: at and at - self.began_at for name, at in moments.items()}

    def lost_peer(self, error: PeerLostError | DamagedError) -> PeerLostError | DamagedError:
        """Why there are no batches: what ended a stream, or else what its reader says.

        Raises:
            BaseException: What ended a stream is no lost peer.
        """
        for stream in self.lanes:
            if isinstance(stream.error, PeerLostError):
                return stream.error
            if stream.error is not None:
                raise stream.error
        if isinstance(error, DamagedError):
            return DamagedError(f"{error}; --resume writes it again", file=error.file)
        return error


@dataclass(frozen=True)
class Planned:
    """What comes next, on all ranks alike: to save, to stop, or else to make an update.

    Attributes:
        batches: One batch of each lane of this rank, `accumulate` times.
        saves: Save the state first.
        stops: A stop was asked for, or what writes the shards is gone; there are no batches.
        lost: What is gone, or a shard that is damaged, on the ranks that know it.
    """

    batches: list[LaneBatch]
    saves: bool
    stops: bool
    lost: PeerLostError | DamagedError | None


@contextlib.contextmanager
def open_shard_writers(
    session: Session,
    state: TrainState,
    selections: Sequence[LaneSelection],
    *,
    began_at: float,
) -> Iterator[ShardWriters]:
    """Start writing the shards of an outer step; stop it when training ends early."""
    opened_at = time.monotonic()
    train, cache = session.config.train, session.trainer.cache
    num_updates = _num_updates(session, state, selections)
    num_batches = num_updates * train.accumulate
    threads = image_threads()
    room = DiskRoom(
        session.run.path / "shards", state.outer_step, removes=train.keep_shards != "all"
    )
    lanes = [
        ShardWriterThread(
            session.run,
            session.curator.pools,
            each.scan,
            each.rows,
            num_pairs=num_batches * session.config.curate.batch_size,
            pairs_per_shard=train.pairs_per_shard,
            max_pixels=train.max_pixels,
            threads=threads,
            image_side=train.shard_image_side,
            is_decoded=cache.knows if cache is not None else _never,
            make_room=room,
        )
        for each in selections
    ]
    for stream in lanes:
        stream.start()
    try:
        yield ShardWriters(lanes, selections, state.update, num_updates, began_at, opened_at)
    finally:
        for stream in lanes:
            stream.stop()
            stream.join()
        threads.shutdown()


def _never(image: bytes) -> bool:
    return False


def _num_updates(session: Session, state: TrainState, selections: Sequence[LaneSelection]) -> int:
    """Updates of this outer step: as many as its pairs and the run have left."""
    config = session.config
    pairs_per_update = config.pairs_per_update
    own = min(len(each.rows) for each in selections)
    updates: int = min(session.world.agree("started their shards", own)) // pairs_per_update
    if not updates:
        raise BadInputError(
            f"outer step {state.outer_step} found fewer pairs than the {pairs_per_update} of one "
            "update; lower --threshold or --batch-size"
        )
    return min(updates, config.curate.curate_every, config.train.max_updates - state.update)


def updates(
    batches: Iterator[LaneBatch], writers: ShardWriters, session: Session, state: TrainState
) -> Iterator[Planned]:
    """The updates of this outer step from where the run stands; the last may be a stop.

    Where what writes the shards is gone, or a shard is damaged, every update that there are batches
    for comes before; a resumed run writes what is damaged again.

    With `--on-shortfall train` pairs whose image cannot be opened may be missing: the updates end
    with the last one that every rank has images for.

    Raises:
        BadInputError: There are too few images for one update.
    """
    accumulate, world = session.config.train.accumulate, session.world
    pairs_per_update = session.config.pairs_per_update
    may_lack = session.config.curate.on_shortfall == "train"
    for update in range(state.update, writers.first_update + writers.num_updates):
        batch: list[LaneBatch] = []
        lost: PeerLostError | DamagedError | None = None
        done, lacks = update - writers.first_update, False
        try:
            with session.stop.interrupting():
                lacks = may_lack and not writers.have_written(
                    (done + 1) * pairs_per_update, wait_seconds=session.config.train.stream_seconds
                )
                if not lacks:
                    batch = list(islice(batches, len(writers.lanes) * accumulate))
        except StoppedError:
            pass
        except (PeerLostError, DamagedError) as error:
            lost = writers.lost_peer(error)
        if writers.first_batch_at is None:
            writers.first_batch_at = time.monotonic()
        # Rank 0 has the clock and writes.
        is_due = world.is_first and session.saver.is_due(update)
        stops, saves, lacks = world.any_of(not batch and not lacks, is_due, lacks)
        if lacks and not stops:
            if not done:
                raise _too_few_images(session, state)
            _skip_the_rest(batches, writers, session, done * accumulate, batch)
            return
        yield Planned(batch, saves or stops, stops, lost)


def _skip_the_rest(
    batches: Iterator[LaneBatch],
    writers: ShardWriters,
    session: Session,
    num_trained: int,
    drawn: Sequence[LaneBatch],
) -> None:
    """Take the batches that are too few for an update, so that the next outer step's are next.

    Args:
        batches: Where they come from.
        writers: What wrote them.
        session: The run.
        num_trained: Batches of each lane that were trained on.
        drawn: Of all lanes, batches that were taken since.
    """
    writers.finish()
    num_batches = min(len(each.rows) // session.config.curate.batch_size for each in writers.lanes)
    for _ in islice(batches, (num_batches - num_trained) * len(writers.lanes) - len(drawn)):
        pass


def _too_few_images(session: Session, state: TrainState) -> BadInputError:
    config = session.config
    return BadInputError(
        f"outer step {state.outer_step} has too few images that can be opened for one update "
        f"of {config.pairs_per_update} pairs; lower --threshold or --batch-size, and check "
        f"the pool's image root with: {session.curator.pools.info_commands}"
    )
