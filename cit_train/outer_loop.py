"""The main path: curate with the text encoder as it is now, train on what was kept, commit."""

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cit_curate.ledger import Run
from cit_curate.lock import owner_lock
from cit_train.batches import LaneBatch, open_batches
from cit_train.checkpoint import checkpoint_name, save_checkpoint
from cit_train.commit import commit_step
from cit_train.config import RunConfig
from cit_train.session import Session, open_session
from cit_train.step_batches import open_streams, updates
from cit_train.tensorboard import TensorBoardWatcher
from cit_train.trainer import TrainState, UpdateReport
from cit_train.watcher import Watcher, Watchers


def train(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Run:
    """Train a dual encoder on pairs curated from a pool while it trains (arXiv 2301.02241).

    Args:
        config: A recipe's config.
        out: The run folder; absent or empty, unless resumed.
        resume: Go on from the last commit, as if never stopped; starts a run where none is.
        overwrite: Replace the run that is there.
        watcher: Told what happens.

    Returns:
        The finished run; its model is in `checkpoints/last` and `checkpoints/best`.

    Raises:
        CitError: See `cit_curate.errors`; the run can be resumed from its last commit.
    """
    watcher, out = watcher or Watcher(), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with owner_lock(out.with_name(f".{out.name}.lock")):
        if not config.train.tensorboard:
            session = open_session(config, out, resume=resume, overwrite=overwrite)
            return train_session(session, watcher)
        # First: without the package there must be no run folder that the next try stumbles over.
        with contextlib.closing(TensorBoardWatcher(out / "tensorboard")) as board:
            session = open_session(config, out, resume=resume, overwrite=overwrite)
            return train_session(session, Watchers(watcher, board))


def train_session(session: Session, watcher: Watcher) -> Run:
    """The two loops, from where the session stands."""
    config = session.config
    state, best, curator, trainer = session.state, session.best, session.curator, session.trainer
    scores = curator.config.curation != "none"
    if scores and state.update == 0 and config.curate.skip_until < config.train.max_updates:
        watcher.sampled(curator.sample(trainer.text_encoder()), config)
    batches = open_batches(session.batches, num_workers=config.train.num_workers)
    while not _is_done(session, state, best):
        encoder = trainer.text_encoder()  # as it is now; carries its fingerprint
        index = curator.refresh(encoder)  # rebuilt only if the encoder changed
        selections = curator.run(  # captions only
            encoder,
            index,
            state.cursors,
            outer_step=state.outer_step,
            update=state.update,
            num_pairs=config.budget,  # also in a shorter last outer step, as in the paper
            on_progress=partial(watcher.curating, state.outer_step),
        )
        used: list[LaneBatch] = []
        with open_streams(session, state, selections) as streams:
            for batch in updates(batches, streams, session, state, selections):
                state, report = trainer.step(batch, state)
                # without their pictures, which must not pile up over an outer step
                used.extend(replace(each, images=[], views=None) for each in batch)
                best = _after_update(session, state, report, best, watcher)
            streams.finish()
        state = commit_step(session, state, streams, used, best)
        watcher.committed(state, selections)
    return session.run


def _is_done(session: Session, state: TrainState, best: dict[str, Any] | None) -> bool:
    """Whether all updates are made, or evaluations have been no better for too long."""
    if state.update >= session.config.train.max_updates:
        return True
    if session.evaluator is None or best is None:
        return False
    return session.evaluator.is_out_of_patience(update=state.update, best_update=best["update"])


def _after_update(
    session: Session,
    state: TrainState,
    report: UpdateReport,
    best: dict[str, Any] | None,
    watcher: Watcher,
) -> dict[str, Any] | None:
    """Log an update, evaluate when it is time, and keep the best weights so far."""
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
        return best
    evaluation = session.evaluator(session.trainer.model, session.trainer.tokenizer)
    watcher.evaluated(state, evaluation)
    values = {
        "accuracy": evaluation.accuracy,
        "mean_per_class": evaluation.mean_per_class,
        "metric": session.evaluator.best_metric,
        "value": session.evaluator.best_value(evaluation),
    }
    session.run.log({"kind": "eval", "update": state.update, **values})
    if best is not None and values["value"] <= best["value"]:
        return best
    name = checkpoint_name(state.update)
    save_checkpoint(session.run.path / name, session.trainer, session.processor)
    return {"update": state.update, "checkpoint": name, **values}
