"""After an update: its log line and, when due, an evaluation whose result all ranks share."""

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
    """Whether all updates are made, or the evaluations have stopped improving."""
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
    """Log an update, and evaluate when it is due.

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
    is_due = state.update % config.evaluation.eval_every == 0 or is_last
    if session.evaluator is None or not is_due:
        return state
    return evaluate_and_record(session, state, writers, watcher)


def evaluate_and_record(
    session: Session, state: TrainState, writers: ShardWriters, watcher: Watcher
) -> TrainState:
    """Evaluate on rank 0, which saves the best weights; all ranks get the best evaluation so far.

    Raises:
        StoppedError: A signal interrupted the evaluation; a resumed run repeats it.
        PeerLostError: A process that opens images ended; a resumed run repeats the evaluation.
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
    best = _record(session, state, evaluation, watcher) if evaluation else None
    best = world.agree("seen the evaluation", best)[0]
    if best is None:
        save_and_stop(session, replace(state, owes_evaluation=True), writers, lost)
    return replace(state, best=best, owes_evaluation=False)


def _record(
    session: Session, state: TrainState, evaluation: Evaluation, watcher: Watcher
) -> dict[str, Any]:
    """Log an evaluation, save the weights if it is a new best one, and return the best one."""
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
