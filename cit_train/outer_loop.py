"""The main path: curate with the text encoder as it is now, train on what was kept, commit."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from cit_curate.curation import LaneSelection, write_scan
from cit_curate.errors import BadInputError, PeerLostError
from cit_curate.ledger import SCHEMAS, Commit, Run, step_folder
from cit_curate.lock import owner_lock
from cit_train.batches import LaneBatch, count_uses, open_batches
from cit_train.checkpoint import checkpoint_name, checkpoints_except, point_to, save_checkpoint
from cit_train.config import RunConfig
from cit_train.session import Session, open_session
from cit_train.stream import ShardStream
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
        session = open_session(config, out, resume=resume, overwrite=overwrite)
        if not config.train.tensorboard:
            return train_session(session, watcher)
        with contextlib.closing(TensorBoardWatcher(out / "tensorboard")) as board:
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
        with _streams(session, state, selections) as streams:
            for batch in _updates(batches, streams, session, state, selections):
                state, report = trainer.step(batch, state)
                used.extend(_without_images(batch))
                best = _after_update(session, state, report, best, watcher)
            streams.finish()
        state = _commit(session, state, streams, used, best)
        watcher.committed(state, selections)
    return session.run


def _is_done(session: Session, state: TrainState, best: dict[str, Any] | None) -> bool:
    """Whether all updates are made, or evaluations have been no better for too long."""
    if state.update >= session.config.train.max_updates:
        return True
    if session.evaluator is None or best is None:
        return False
    return session.evaluator.is_out_of_patience(update=state.update, best_update=best["update"])


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
def _streams(
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


def _updates(
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


def _commit(
    session: Session,
    state: TrainState,
    streams: Streams,
    used: list[LaneBatch],
    best: dict[str, Any] | None,
) -> TrainState:
    """Weights, cursors, ledger and counts of an outer step become part of the run, all at once."""
    run, lanes = session.run, session.config.curate.lanes
    files = []
    batches_per_update = lanes * session.config.train.accumulate
    first_update = state.update - len(used) // batches_per_update + 1
    uses = count_uses(used, first_update, batches_per_update)
    for stream in streams.lanes:
        place = {"outer_step": state.outer_step, "lane": stream.scan.lane}
        files += write_scan(run, stream.scan, stream.selected_rows())
        own = [row for row in uses if row["lane"] == stream.scan.lane]
        table = pa.Table.from_pylist(own, schema=SCHEMAS["used"])
        files.append(run.write_table("used", table, **place))
        files.append(run.write_table("rejects", stream.reject_rows(), **place))
    name = checkpoint_name(state.update)
    save_checkpoint(run.path / name, session.trainer, session.processor)
    if session.trainer.cache is not None:
        session.trainer.cache.flush()
    cursors = tuple(stream.scan.cursor for stream in streams.lanes)
    run.commit(
        Commit(
            outer_step=state.outer_step,
            update=state.update,
            cursors=cursors,
            files=tuple(files),
            checkpoint=name,
            best=best,
        )
    )
    point_to(run.path, "last", name)
    if best:
        point_to(run.path, "best", best["checkpoint"])
    _tidy(session, state, best)
    return replace(state, outer_step=state.outer_step + 1, cursors=cursors)


def _tidy(session: Session, state: TrainState, best: dict[str, Any] | None) -> None:
    """Remove checkpoints and shards that nothing needs any more."""
    run, keep = session.run, session.config.train.keep_shards
    commits = run.commits()
    needed = [commit.checkpoint for commit in commits[-2:] if commit.checkpoint]
    for path in checkpoints_except(run.path, [*needed, *([best["checkpoint"]] if best else [])]):
        shutil.rmtree(path)
    if keep != "all":
        num_kept = 0 if keep == "none" else int(keep)
        kept = {step_folder(state.outer_step - back) for back in range(num_kept)}
        for folder in (run.path / "shards").glob("step=*"):
            if folder.name not in kept:
                shutil.rmtree(folder)


def _without_images(batches: Sequence[LaneBatch]) -> list[LaneBatch]:
    """The batches without their pictures, which must not pile up over an outer step."""
    return [replace(batch, images=[], views=None) for batch in batches]
