"""How a run goes on in the middle of an outer step: its selection, then its weights."""

from dataclasses import replace

from cit_curate.curation.curator import LaneSelection
from cit_curate.records import Embedder
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.recovery.checkpoint import load_checkpoint
from cit_train.loop.recovery.mid_step import MidStep, read_selection
from cit_train.loop.session import Session
from indexes.protocol import MetadataIndex


def resumed(
    session: Session, state: TrainState, encoder: Embedder, index: MetadataIndex | None
) -> list[LaneSelection]:
    """The selection of the outer step that was left in its middle; empty for any other one.

    Args:
        session: The run.
        state: Its state at the start of the outer step.
        encoder: The text encoder at that start, which replacements are still scored with.
        index: The metadata under that encoder.
    """
    place = _left_in(session, state)
    if place is None:
        return []
    lanes = session.world.lanes(session.config.curate.lanes)
    scores = session.ahead.scores
    scans = [
        session.curator.scan(
            encoder,
            index,
            state.cursors[lane],
            outer_step=state.outer_step,
            lane=lane,
            update=state.update,
            scores=scores and scores(lane),
        )
        for lane in lanes
    ]
    return [read_selection(session.run, scan) for scan in scans]


def within_step(session: Session, state: TrainState) -> TrainState:
    """Where training goes on in this outer step, its weights in the trainer; else as it is."""
    place = _left_in(session, state)
    if place is None:
        return state
    load_checkpoint(session.run.path / place.checkpoint, session.trainer)
    return replace(
        state,
        update=place.update,
        best=dict(place.best) if place.best else None,
        owes_evaluation=place.owes_evaluation,
    )


def _left_in(session: Session, state: TrainState) -> MidStep | None:
    place = session.mid_step
    return place if place is not None and place.outer_step == state.outer_step else None
