"""The shard writers of one outer step, and the updates that its batches allow."""

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
from cit_train.streaming.image_opener import ImageOpener, image_threads, never_decoded
from cit_train.streaming.shard_stream import ShardWriterThread


@dataclass
class ShardWriters:
    """The shard writers of one outer step, one for each lane of this rank.

    Attributes:
        lanes: The writer of each lane.
        selections: The selection of each lane.
        first_update: Updates made before this outer step.
        num_updates: Updates of this outer step; every rank has the pairs for them.
        began_at: Start of the selection, in seconds of `time.monotonic`.
        opened_at: End of the selection.
        first_batch_at: Arrival of the first batch; None before.
    """

    lanes: list[ShardWriterThread]
    selections: Sequence[LaneSelection]
    first_update: int
    num_updates: int
    began_at: float
    opened_at: float
    first_batch_at: float | None = None

    def finish(self) -> None:
        """Wait until every shard is written; a writer's error is raised."""
        for writer in self.lanes:
            writer.finish()

    def have_written(self, num_pairs: int, *, wait_seconds: float) -> bool:
        """Wait until each lane has written `num_pairs` pairs; False when a lane ends with fewer."""
        return all(
            writer.has_written(num_pairs, wait_seconds=wait_seconds) for writer in self.lanes
        )

    def seconds(self, writer: ShardWriterThread) -> dict[str, Any]:
        """The timings of a lane for the metrics log, in seconds since the selection began."""
        moments = {
            "select_seconds": self.opened_at,
            "first_shard_seconds": writer.first_shard_at,
            "first_batch_seconds": self.first_batch_at,
            "last_shard_seconds": writer.last_shard_at,
        }
        return {name: at and at - self.began_at for name, at in moments.items()}

    def cause_of(self, error: PeerLostError | DamagedError) -> PeerLostError | DamagedError:
        """The cause of a reader's error: the error of a writer, or else the reader's own.

        Raises:
            BaseException: A writer's error, unless it is a `PeerLostError`.
        """
        for writer in self.lanes:
            if isinstance(writer.error, PeerLostError):
                return writer.error
            if writer.error is not None:
                raise writer.error
        if isinstance(error, DamagedError):
            return DamagedError(f"{error}; --resume writes it again", file=error.file)
        return error


@dataclass(frozen=True)
class PlannedUpdate:
    """The next update, or a stop instead of it; all ranks agree.

    Attributes:
        batches: One batch of each lane of this rank, `accumulate` times; unused on a stop.
        saves: Whether the state is saved first.
        stops: Whether the run stops: a signal came, or some rank cannot read its batches.
        lost: Why this rank cannot read its batches; None on the other ranks.
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
    """Write the shards of an outer step in threads, which end with the `with` block."""
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
            selection.scan,
            selection.rows,
            ImageOpener(
                session.curator.pools,
                threads,
                max_pixels=train.max_pixels,
                side=train.shard_image_side,
                is_decoded=cache.knows if cache is not None else never_decoded,
            ),
            num_pairs=num_batches * session.config.curate.batch_size,
            pairs_per_shard=train.pairs_per_shard,
            make_room=room,
        )
        for selection in selections
    ]
    for writer in lanes:
        writer.start()
    try:
        yield ShardWriters(lanes, selections, state.update, num_updates, began_at, opened_at)
    finally:
        for writer in lanes:
            writer.stop()
            writer.join()
        threads.shutdown()


def _num_updates(session: Session, state: TrainState, selections: Sequence[LaneSelection]) -> int:
    """The updates that the smallest lane of all ranks has pairs for, within the config's limits."""
    config = session.config
    pairs_per_update = config.pairs_per_update
    num_pairs = min(len(selection.rows) for selection in selections)
    fewest: int = min(session.world.agree("started their shards", num_pairs))
    num_updates = fewest // pairs_per_update
    if not num_updates:
        raise BadInputError(
            f"outer step {state.outer_step} found fewer pairs than the {pairs_per_update} of one "
            "update; lower --threshold or --batch-size"
        )
    return min(num_updates, config.curate.curate_every, config.train.max_updates - state.update)


def updates(
    batches: Iterator[LaneBatch], writers: ShardWriters, session: Session, state: TrainState
) -> Iterator[PlannedUpdate]:
    """The remaining updates of this outer step; the last one may be a stop.

    When a writer fails or a shard is damaged, the batches before it are used up first. A resumed
    run writes a damaged shard again.

    With `--on-shortfall train`, a lane may write fewer pairs than it selected, because images
    cannot be opened. The updates then end with the last one that every rank has pairs for.

    Raises:
        BadInputError: There are too few images for one update.
    """
    accumulate, world = session.config.train.accumulate, session.world
    pairs_per_update = session.config.pairs_per_update
    may_be_short = session.config.curate.on_shortfall == "train"
    for update in range(state.update, writers.first_update + writers.num_updates):
        drawn: list[LaneBatch] = []
        lost: PeerLostError | DamagedError | None = None
        num_done, is_short = update - writers.first_update, False
        try:
            with session.stop.interrupting():
                is_short = may_be_short and not writers.have_written(
                    (num_done + 1) * pairs_per_update,
                    wait_seconds=session.config.train.stream_seconds,
                )
                if not is_short:
                    drawn = list(islice(batches, len(writers.lanes) * accumulate))
        except StoppedError:
            pass
        except (PeerLostError, DamagedError) as error:
            lost = writers.cause_of(error)
        if writers.first_batch_at is None:
            writers.first_batch_at = time.monotonic()
        # Rank 0's clock decides when to save.
        is_due = world.is_first and session.saver.is_due(update)
        stops, saves, is_short = world.any_of(not drawn and not is_short, is_due, is_short)
        if is_short and not stops:
            if not num_done:
                raise _too_few_images(session, state)
            num_drawn = num_done * accumulate * len(writers.lanes) + len(drawn)
            _skip_the_rest(batches, writers, session.config.curate.batch_size, num_drawn)
            return
        yield PlannedUpdate(drawn, saves or stops, stops, lost)


def _skip_the_rest(
    batches: Iterator[LaneBatch], writers: ShardWriters, batch_size: int, num_drawn: int
) -> None:
    """Skip the last batches of an outer step, which are too few for an update.

    Args:
        batches: The batches of all lanes; the next outer step's follow.
        writers: The shard writers of this outer step.
        batch_size: Pairs of one batch.
        num_drawn: Batches of this outer step that were taken already.
    """
    writers.finish()
    num_batches = min(len(writer.rows) for writer in writers.lanes) // batch_size
    for _ in islice(batches, num_batches * len(writers.lanes) - num_drawn):
        pass


def _too_few_images(session: Session, state: TrainState) -> BadInputError:
    config = session.config
    return BadInputError(
        f"outer step {state.outer_step} has too few images that can be opened for one update "
        f"of {config.pairs_per_update} pairs; lower --threshold or --batch-size, and check "
        f"the pool's image root with: {session.curator.pools.info_commands}"
    )
