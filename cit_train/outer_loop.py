"""The main path: curate with the current text encoder, train on the selected pairs, commit."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from cit_curate.gpu_kernels import deterministic_kernels
from cit_curate.run.ledger import Run
from cit_curate.storage.durable import check_room
from cit_curate.storage.lock import writer_lock
from cit_curate.storage.remote import refuse_remote_run
from cit_curate.text_encoder.encoder import choose_device
from cit_train.config import RunConfig
from cit_train.loop.commit import commit_step, end_run, save_and_stop, save_within_step
from cit_train.loop.curate_step import curate_lanes
from cit_train.loop.evaluate_step import evaluate_and_record, is_done, log_and_evaluate
from cit_train.loop.resume import resume_selections, resume_within_step
from cit_train.loop.session import Session, open_session
from cit_train.loop.tensorboard import TensorBoardWatcher
from cit_train.loop.updates import open_shard_writers, updates
from cit_train.loop.watcher import Watcher, Watchers
from cit_train.ranks.attempt import attempt
from cit_train.ranks.preflight import allow_open_files
from cit_train.ranks.threads import compute_threads
from cit_train.streaming.batches import open_batches


def train(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Run:
    """Train a dual encoder on pairs curated from a pool while it trains (arXiv 2301.02241).

    Under torchrun, this process is one rank of the run and trains its share of the lanes.

    Args:
        config: The config of the run, such as a recipe's.
        out: The run folder; absent or empty unless the run is resumed.
        resume: Continue from the last saved state, as if the run had never stopped; without one,
            start a new run.
        overwrite: Replace an existing run.
        allow_change: Settings, by their keys in config.json, that may differ in a resumed run;
            config.json then records the old and new values.
        watcher: Receives the run's progress; with several ranks, only rank 0's does.

    Returns:
        The finished run; its model is in `checkpoints/last` and `checkpoints/best`.

    Raises:
        StoppedError: A signal stopped the run; its state is saved.
        CitError: See `cit_curate.errors`; the run can be resumed from the last saved state.
    """
    refuse_remote_run(out)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    allow_open_files()
    check_room(out if out.is_dir() else out.parent)
    with attempt(config.train, out) as world, contextlib.ExitStack() as stack:
        stack.enter_context(compute_threads(config.train.threads))
        stack.enter_context(deterministic_kernels(choose_device(config.train.device)))
        watchers = [watcher] if watcher is not None and world.is_first else []
        if world.is_first:
            stack.enter_context(writer_lock(out))
            # First: without the tensorboard package no run folder may be created.
            if config.train.tensorboard:
                board = TensorBoardWatcher(out / "tensorboard")
                watchers.append(stack.enter_context(contextlib.closing(board)))
        session = open_session(
            config,
            out,
            resume=resume,
            overwrite=overwrite,
            allow_change=allow_change,
            world=world,
        )
        Watchers(*watchers).opened(session.class_notes)
        run = train_session(session, Watchers(*watchers))
        world.agree("finished", None)
        return run


def train_session(session: Session, watcher: Watcher) -> Run:
    """Run the outer and the inner loop from the session's state to the end."""
    config, curator, trainer = session.config, session.curator, session.trainer
    state = session.state
    loading = open_batches(session.batches, num_workers=config.train.num_workers)
    with loading as batches, session.saver, session.ahead as ahead:
        while not is_done(session, state):
            began_at = time.monotonic()
            # With --ahead, the encoder of the previous outer step; else the current one. Vectors
            # are kept under the one that every run starts with, and not while training moves it.
            kept = None if state.update else curator.kept
            encoder = ahead.encoder(state) or trainer.text_encoder(kept)
            index = curator.refresh(encoder)  # rebuilt only if the encoder changed
            scores = ahead.scores or curator.lane_scores(encoder, index)
            selections = resume_selections(session, state, encoder, scores)
            selections = selections or curate_lanes(session, state, encoder, scores, watcher)
            with open_shard_writers(session, state, selections, began_at=began_at) as writers:
                ahead.begin(state, selections, writers.num_updates)  # the next outer step
                state = resume_within_step(session, state)
                if state.owes_evaluation:
                    state = evaluate_and_record(session, state, writers, watcher)
                for planned in updates(batches, writers, session, state):
                    if planned.stops:
                        save_and_stop(session, state, writers, planned.lost)
                    if planned.saves:
                        save_within_step(session, state, writers)
                    state, report = trainer.step(planned.batches, state)
                    state = log_and_evaluate(session, state, writers, report, watcher)
                writers.finish()
            state = commit_step(session, state, writers, watcher)
        end_run(session)
    session.world.beat("finished", outer_step=state.outer_step, update=state.update)
    return session.run
