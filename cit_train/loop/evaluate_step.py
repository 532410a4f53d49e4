"""After an update: its log line, and when it is time the evaluation, which all ranks learn of."""

from dataclasses import replace
from functools import partial
from typing import Any

from cit_curate.errors import PeerLostError
from cit_train.evaluation.zero_shot import Evaluation
from cit_train.inner_loop.trainer import TrainState, UpdateReport
from cit_train.loop.commit import save_and_stop
from cit_train.loop.recovery.checkpoint import checkpoint_name, save_checkpoint, take_snapshot
from cit_train.loop.session import Session
from cit_train.loop.updates import ShardWriters
from cit_train.loop.watcher import Watcher
from cit_train.ranks.stopping import StoppedError


def is_done(session: Session, state: TrainState) -> bool:
    """Whether all updates are made, or evaluations have been no better for too long."""
    if state.update >= session.config.train.max_updates:
        return True
    if session.evaluator is None or state.best is None:
        return False
    best_update = state.best["update"]
    return session.evaluator.is_out_of_patience(update=state.update, best_update=best_update)


def log_and_evaluate(
    session: Session,
    state: TrainState,
    writers: ShardWriters,
    report: UpdateReport,
    watcher: Watcher,
) -> TrainState:
    """Log an update, and evaluate when it is time.

    Raises:
        StoppedError: See `evaluate_and_record`.
    """
    session.world.beat("training", outer_step=state.outer_step, update=state.update)
    if session.world.is_first:
        session.run.log(
            {
                "kind": "train",
                "update": state.update,
                "loss": report.loss,
                "learning_rate": report.learning_rate,
                "skipped": report.skipped,
            }
        )
    watcher.trained(state, report)
    config = session.config
    is_last = state.update == config.train.max_updates
    is_time = state.update % config.evaluation.eval_every == 0 or is_last
    if session.evaluator is None or not is_time:
        return state
    return evaluate_and_record(session, state, writers, watcher)


def evaluate_and_record(
    session: Session, state: TrainState, writers: ShardWriters, watcher: Watcher
) -> TrainState:
    """The state with the best evaluation so far; rank 0 evaluates, and keeps the best weights.

    Raises:
        StoppedError: A signal ended the evaluation, which is made when the run is taken up again.
        PeerLostError: A process that opens images is gone; the same.
    """
    world, evaluation, lost = session.world, None, None
    world.beat("evaluating", outer_step=state.outer_step, update=state.update)
    if world.is_first:
        assert session.evaluator is not None
        try:
            with session.stop.interrupting():
                evaluation = session.evaluator(session.trainer.model, session.trainer.tokenizer)
        except StoppedError:
            pass
        except PeerLostError as error:
            lost = error
    best = _recorded(session, state, evaluation, watcher) if evaluation else None
    best = world.agree("seen the evaluation", best)[0]
    if best is None:
        save_and_stop(session, replace(state, owes_evaluation=True), writers, lost)
    return replace(state, best=best, owes_evaluation=False)


def _recorded(
    session: Session, state: TrainState, evaluation: Evaluation, watcher: Watcher
) -> dict[str, Any]:
    """Log an evaluation, and give the best one so far, whose weights are kept."""
    assert session.evaluator is not None
    watcher.evaluated(state, evaluation)
    values = {
        "accuracy": evaluation.accuracy,
        "mean_per_class": evaluation.mean_per_class,
        "metric": session.evaluator.best_metric,
        "value": session.evaluator.best_value(evaluation),
    }
    session.run.log({"kind": "eval", "update": state.update, **values})
    if state.best is not None and values["value"] <= state.best["value"]:
        return state.best
    name = checkpoint_name(state.update)
    snapshot = take_snapshot(session.trainer)
    session.saver.submit(partial(save_checkpoint, session.run.path / name, snapshot))
    return {"update": state.update, "checkpoint": name, **values}
