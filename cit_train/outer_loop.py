"""The main path: curate with the text encoder as it is now, train on what was kept, commit."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from cit_curate.run.ledger import Run
from cit_curate.storage.durable import check_room
from cit_curate.storage.lock import writer_lock
from cit_curate.storage.remote import refuse_remote_run
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

    Started by torchrun, this process is one rank of the run and has its share of the lanes.

    Args:
        config: A recipe's config.
        out: The run folder; absent or empty, unless resumed.
        resume: Go on from what was saved last, as if never stopped; starts a run where none is.
        overwrite: Replace the run that is there.
        allow_change: Settings, by their keys in config.json, that a resumed run may go on with
            another value of; config.json says from where on.
        watcher: Told what happens; of several ranks, rank 0's alone.

    Returns:
        The finished run; its model is in `checkpoints/last` and `checkpoints/best`.

    Raises:
        StoppedError: A signal asked to stop; everything up to then is saved.
        CitError: See `cit_curate.errors`; the run can be resumed from what was saved last.
    """
    refuse_remote_run(out)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    allow_open_files()
    check_room(out if out.is_dir() else out.parent)
    with attempt(config.train, out) as world, contextlib.ExitStack() as stack:
        stack.enter_context(compute_threads(config.train.threads))
        watchers = [watcher] if watcher is not None and world.is_first else []
        if world.is_first:
            stack.enter_context(writer_lock(out))
            # First: without the package there must be no run folder to stumble over.
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
        run = train_session(session, Watchers(*watchers))
        world.agree("finished", None)
        return run


def train_session(session: Session, watcher: Watcher) -> Run:
    """The two loops, from where the session stands."""
    config, curator, trainer = session.config, session.curator, session.trainer
    state = session.state
    pins = trainer.device.type == "cuda"
    loading = open_batches(session.batches, num_workers=config.train.num_workers, pins=pins)
    with loading as batches, session.saver, session.ahead as ahead:
        while not is_done(session, state):
            began_at = time.monotonic()
            # As it is now, or with --ahead as it was one outer step ago.
            encoder = ahead.encoder(state) or trainer.text_encoder()
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
