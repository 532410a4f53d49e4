"""Resuming in the middle of an outer step: first its selections, then its weights."""

from dataclasses import replace

from cit_curate.curation.curator import LaneSelection
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.curation.scores.exact import LaneScores
from cit_curate.text_encoder.embedder import Embedder
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.recovery.checkpoint import load_checkpoint
from cit_train.loop.recovery.mid_step import MidStep, read_selection
from cit_train.loop.session import Session


def resume_selections(
    session: Session, state: TrainState, encoder: Embedder, scores: LaneScores | None
) -> list[LaneSelection]:
    """The saved selections of this rank's lanes; empty unless this outer step was interrupted.

    Args:
        session: The run.
        state: Its state at the start of the outer step.
        encoder: The text encoder that the outer step selects with.
        scores: The scores of captions under this encoder, for replacements.
    """
    if _saved_within(session, state) is None:
        return []
    step = OuterStep(state.outer_step, state.update, encoder.fingerprint)
    return [
        read_selection(session.run, session.curator.scan(step, lane, state.cursors[lane], scores))
        for lane in session.world.lanes(session.config.curate.lanes)
    ]


def resume_within_step(session: Session, state: TrainState) -> TrainState:
    """The saved state within this outer step, with its weights loaded; `state` if there is none."""
    saved = _saved_within(session, state)
    if saved is None:
        return state
    load_checkpoint(session.run.path / saved.checkpoint, session.trainer)
    return replace(
        state,
        update=saved.update,
        best=dict(saved.best) if saved.best else None,
        owes_evaluation=saved.owes_evaluation,
    )


def _saved_within(session: Session, state: TrainState) -> MidStep | None:
    saved = session.mid_step
    return saved if saved is not None and saved.outer_step == state.outer_step else None
