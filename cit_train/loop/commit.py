"""Saving a run: the commit of an outer step, and the state in the middle of one."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NoReturn

from cit_curate.curation.curator import write_scan
from cit_curate.curation.lane_scan import LaneScan
from cit_curate.curation.scan_ledger import metrics_record
from cit_curate.errors import CitError
from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.paths import step_folder
from cit_curate.storage.durable import FileEntry, remove_folder
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.recovery.checkpoint import (
    Snapshot,
    checkpoint_name,
    checkpoints_except,
    point_to,
    save_checkpoint,
    take_snapshot,
)
from cit_train.loop.recovery.mid_step import (
    MidStep,
    remove_mid_step,
    write_mid_step,
    write_selection,
)
from cit_train.loop.session import Session
from cit_train.loop.updates import ShardWriters
from cit_train.loop.watcher import StepNumbers, Watcher
from cit_train.ranks.stopping import StoppedError
from cit_train.streaming.batches import count_uses
from cit_train.streaming.shard_stream import ShardWriterThread


def commit_step(
    session: Session,
    state: TrainState,
    writers: ShardWriters,
    watcher: Watcher,
) -> TrainState:
    """Commit the weights, cursors, ledger and counts of an outer step, all or nothing.

    Each rank writes the tables of its lanes. Rank 0 writes the rest while the next outer step
    begins, and notifies the watcher once the commit is on the disk.
    """
    written = [
        _write_lane(session, writers, writer, selection.scan, state)
        for writer, selection in zip(writers.lanes, writers.selections, strict=True)
    ]
    if session.trainer.cache is not None:
        session.trainer.cache.flush()
    lanes = [lane for rank in session.world.agree("committed", written) for lane in rank]
    cursors = tuple(PoolCursor(**lane["cursor"]) for lane in lanes)
    after = replace(state, outer_step=state.outer_step + 1, cursors=cursors)
    if session.world.is_first:
        for lane in lanes:
            session.run.log(lane["metrics"])
        commit = Commit(
            outer_step=state.outer_step,
            update=state.update,
            cursors=cursors,
            files=tuple(FileEntry(**entry) for lane in lanes for entry in lane["files"]),
            checkpoint=checkpoint_name(state.update),
            best=state.best,
        )
        snapshot = take_snapshot(session.trainer)
        numbers = StepNumbers(
            scanned=sum(lane["metrics"]["scanned"] for lane in lanes),
            kept=sum(lane["metrics"]["kept"] for lane in lanes),
            selected=sum(lane["selected"] for lane in lanes),
        )
        report = partial(watcher.committed, after, numbers)
        num_kept_shards = session.config.train.num_kept_shards
        job = partial(_commit, session.run, commit, snapshot, num_kept_shards, report)
        session.saver.submit(job, update=state.update)
    return after


def save_and_stop(
    session: Session, state: TrainState, writers: ShardWriters, lost: CitError | None = None
) -> NoReturn:
    """Save the state and end this attempt.

    Args:
        session: The run.
        state: Its current state.
        writers: The shard writers of this outer step.
        lost: The error that ends the attempt; None where a signal does.

    Raises:
        StoppedError: A signal stopped the run.
        PeerLostError: A process that training depends on ended, on this rank or on another.
        DamagedError: A shard is damaged.
    """
    save_within_step(session, state, writers)
    session.saver.wait()
    # No rank may end before all have saved: launchers then kill the remaining ones.
    reports = session.world.agree("saved the state", [lost is not None, session.stop.requested])
    if lost is not None:
        raise lost
    if any(is_lost for is_lost, _ in reports):
        session.world.agree("ended", None)  # raises the error of that rank
    session.stop.take_over([requested for _, requested in reports])
    raise StoppedError("asked to stop")


def save_within_step(session: Session, state: TrainState, writers: ShardWriters) -> None:
    """Save the state in the middle of an outer step, while training continues."""
    if state.update == writers.first_update:  # the last commit is this very state
        return
    written = [asdict(e) for each in writers.selections for e in write_selection(session.run, each)]
    if session.trainer.cache is not None:
        session.trainer.cache.flush()
    entries = [entry for rank in session.world.agree("saved", written) for entry in rank]
    if session.world.is_first:
        mid_step = MidStep(
            outer_step=state.outer_step,
            update=state.update,
            checkpoint=checkpoint_name(state.update),
            files=tuple(FileEntry(**entry) for entry in entries),
            best=state.best,
            owes_evaluation=state.owes_evaluation,
        )
        snapshot = take_snapshot(session.trainer)
        session.saver.submit(partial(_save, session.run, mid_step, snapshot), update=state.update)


def end_run(session: Session) -> None:
    """Wait until everything is written, and remove the shards if none are kept."""
    session.saver.wait()
    if session.world.is_first and session.config.train.num_kept_shards == 0:
        remove_folder(session.run.path / "shards")


def _write_lane(
    session: Session,
    writers: ShardWriters,
    writer: ShardWriterThread,
    scan: LaneScan,
    state: TrainState,
) -> dict[str, Any]:
    """Write the ledger tables of one lane, and return its part of the commit as JSON values."""
    run = session.run
    num_updates = state.update - writers.first_update
    step_and_lane = {"outer_step": state.outer_step, "lane": scan.lane}
    pairs_per_update = session.config.pairs_per_update
    uses = count_uses(
        writer.rows.slice(0, num_updates * pairs_per_update),
        first_update=writers.first_update + 1,
        pairs_per_update=pairs_per_update,
        **step_and_lane,
    )
    rows = writer.selected_rows()
    files = [
        *write_scan(run, scan, rows),
        run.write_table("used", uses, **step_and_lane),
        run.write_table("rejects", writer.reject_rows(), **step_and_lane),
    ]
    return {
        "selected": len(rows),
        "files": [asdict(entry) for entry in files],
        "cursor": asdict(scan.cursor),
        "metrics": {
            **metrics_record(scan),
            "staleness": session.ahead.staleness,
            **writers.seconds(writer),
        },
    }


def _commit(
    run: Run,
    commit: Commit,
    snapshot: Snapshot,
    num_kept_shards: int | None,
    report: Callable[[], None],
) -> None:
    assert commit.checkpoint is not None
    save_checkpoint(run.path / commit.checkpoint, snapshot)
    run.commit(commit)
    point_to(run.path, "last", commit.checkpoint)
    if commit.best:
        point_to(run.path, "best", commit.best["checkpoint"])
    remove_mid_step(run)
    _remove_unneeded(run, commit, num_kept_shards)
    report()


def _save(run: Run, mid_step: MidStep, snapshot: Snapshot) -> None:
    save_checkpoint(run.path / mid_step.checkpoint, snapshot)
    write_mid_step(run, mid_step)
    best = [mid_step.best["checkpoint"]] if mid_step.best else []
    for path in checkpoints_except(run.path, [mid_step.checkpoint, *_last_two(run), *best]):
        remove_folder(path)


def _last_two(run: Run) -> list[str]:
    """The checkpoints of the last two commits: one to resume from, and a spare if it is damaged.

    `--ahead` selects with the older one, which after the first commit is the initial one.
    """
    # A run of thousands of outer steps must not read all of them at each.
    last = run.commits(last=2)
    commits = [commit.checkpoint for commit in last if commit.checkpoint]
    return [checkpoint_name(0), *commits][-2:]


def _remove_unneeded(run: Run, commit: Commit, num_kept_shards: int | None) -> None:
    """Remove the checkpoints and shards that are no longer needed."""
    best = [commit.best["checkpoint"]] if commit.best else []
    for path in checkpoints_except(run.path, [*_last_two(run), *best]):
        remove_folder(path)
    if num_kept_shards is not None:
        # At least one: batch readers look into the last folder once more, for its end.
        kept = {step_folder(commit.outer_step - back) for back in range(max(num_kept_shards, 1))}
        for folder in (run.path / "shards").glob("step=*"):
            # The next outer step may have begun to write its shards; they stay.
            if folder.name not in kept and folder.name <= step_folder(commit.outer_step):
                remove_folder(folder)
