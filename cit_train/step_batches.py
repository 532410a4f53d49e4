"""The batches of one outer step: a shard stream for each lane, and the updates they make."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from cit_curate.curation import LaneSelection
from cit_curate.errors import BadInputError, PeerLostError
from cit_train.batches import LaneBatch
from cit_train.session import Session
from cit_train.stream import ShardStream
from cit_train.trainer import TrainState


@dataclass
class Streams:
    """The shard streams of one outer step, lane by lane."""

    lanes: list[ShardStream]

    def finish(self) -> None:
        """Wait until every shard is written, and raise what went wrong with one."""
        for stream in self.lanes:
            stream.finish()

    def raise_first_error(self) -> None:
        """Raise what ended a stream, if anything did."""
        for stream in self.lanes:
            if stream.error is not None:
                raise stream.error


@contextlib.contextmanager
def open_streams(
    session: Session, state: TrainState, selections: Sequence[LaneSelection]
) -> Iterator[Streams]:
    """Start writing the shards of an outer step; stop it when training ends early."""
    train, cache = session.config.train, session.trainer.cache
    num_batches = _planned_updates(session, state, selections) * train.accumulate
    num_pairs = num_batches * session.config.curate.batch_size
    lanes = [
        ShardStream(
            session.run,
            session.pool,
            each.scan,
            each.rows,
            num_pairs=num_pairs,
            pairs_per_shard=train.pairs_per_shard,
            max_pixels=train.max_pixels,
            is_decoded=cache.knows if cache is not None else _never,
        )
        for each in selections
    ]
    for stream in lanes:
        stream.start()
    try:
        yield Streams(lanes)
    finally:
        for stream in lanes:
            stream.stop()
            stream.join()


def _never(image: bytes) -> bool:
    return False


def _planned_updates(
    session: Session, state: TrainState, selections: Sequence[LaneSelection]
) -> int:
    """Updates of this outer step: as many as its pairs and the run have left."""
    config = session.config
    pairs_per_update = config.curate.batch_size * config.train.accumulate
    updates = min(len(each.rows) // pairs_per_update for each in selections)
    if not updates:
        raise BadInputError(
            f"outer step {state.outer_step} found fewer pairs than the {pairs_per_update} of one "
            "update; lower --threshold or --batch-size"
        )
    return min(updates, config.curate.curate_every, config.train.max_updates - state.update)


def updates(
    batches: Iterator[LaneBatch],
    streams: Streams,
    session: Session,
    state: TrainState,
    selections: Sequence[LaneSelection],
) -> Iterator[list[LaneBatch]]:
    """The batches of each update of this outer step: one of every lane."""
    lanes, accumulate = session.config.curate.lanes, session.config.train.accumulate
    planned = _planned_updates(session, state, selections)
    surplus = 0
    if session.config.curate.on_shortfall == "train":
        # Rejected images may leave fewer pairs than planned; then the step is shorter.
        streams.finish()
        batch_size = session.config.curate.batch_size
        num_batches = min(len(stream.rows) // batch_size for stream in streams.lanes)
        planned = min(planned, num_batches // accumulate)
        surplus = num_batches - planned * accumulate
        if not planned:
            raise BadInputError(
                f"outer step {state.outer_step} has too few images that can be opened for one "
                f"update of {batch_size * accumulate} pairs; lower --threshold or --batch-size, "
                f"and check the pool's image root with: cit pool info {session.pool.path}"
            )
    for _ in range(planned):
        try:
            batch = list(islice(batches, lanes * accumulate))
        except PeerLostError:
            streams.raise_first_error()
            raise
        yield batch
    for _ in islice(batches, surplus * lanes):  # too few for an update; the next step is next
        pass
