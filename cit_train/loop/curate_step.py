"""The outer loop's half of an outer step on this rank, and its agreement with the others."""

from typing import Any

from cit_curate.curation.curator import LaneSelection
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.errors import NotFiniteError
from cit_curate.records import Embedder
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.session import Session
from cit_train.loop.watcher import Watcher
from cit_train.ranks.stopping import StoppedError
from indexes.protocol import MetadataIndex


def curated(
    session: Session,
    state: TrainState,
    encoder: Embedder,
    index: MetadataIndex | None,
    watcher: Watcher,
) -> list[LaneSelection]:
    """The next pairs of every lane of this rank, by caption alone; the ranks wait for each other.

    Raises:
        StoppedError: A stop was asked for, on some rank; on all ranks alike.
        ShortfallError: See `LaneScan.take`.
        NotFiniteError: Too many captions of a rank have no usable vector; on all ranks alike.
    """
    world, config, curator = session.world, session.config, session.curator
    place: dict[str, Any] = {"outer_step": state.outer_step, "update": state.update}

    def progress(lane: int, totals: ScanTotals) -> None:
        watcher.curating(state.outer_step, lane, totals)
        told = f"curating lane {lane}: {totals.kept:,} of {totals.scanned:,} captions kept"
        world.beat(told, **place)
        if session.stop.requested is not None:
            raise StoppedError("asked to stop")

    world.beat("curating", **place)
    scores = curator.config.curation != "none"
    is_start = state.update == 0 and config.curate.skip_until < config.train.max_updates
    if scores and is_start and world.is_first:
        watcher.sampled(curator.sample(encoder), config)
    selections: list[LaneSelection] = []
    broken: NotFiniteError | None = None
    try:
        selections = curator.run(
            encoder,
            index,
            state.cursors,
            num_pairs=config.budget,  # also in a shorter last outer step, as in the paper
            lanes=world.lanes(config.curate.lanes),
            on_progress=progress,
            scores=session.ahead.scores,
            **place,
        )
    except StoppedError:
        pass
    except NotFiniteError as error:
        broken = error
    world.beat("waiting for the others", **place)
    stops = None if selections or broken else session.stop.requested
    told = world.agree("curated", [stops, broken and str(broken)])
    if broken := broken or _broken_elsewhere(told):
        raise broken
    names = [name for name, _ in told]
    if any(names):
        session.stop.take_over(names)
        raise StoppedError("asked to stop")
    return selections


def _broken_elsewhere(told: list[list[str | None]]) -> NotFiniteError | None:
    for rank, (_, message) in enumerate(told):
        if message is not None:
            return NotFiniteError(f"rank {rank}: {message}")
    return None
