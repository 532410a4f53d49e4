"""What a run keeps: the commit of an outer step, and the state in the middle of one."""

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
    """Weights, cursors, ledger and counts of an outer step become part of the run, all at once.

    Each rank writes the tables of its lanes; rank 0 writes the rest, while the next outer step
    begins. The watcher is told once the commit is on the disk.
    """
    written = [
        _write_lane(session, writers, lane, selection.scan, state)
        for lane, selection in zip(writers.lanes, writers.selections, strict=True)
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
        keep_shards = session.config.train.keep_shards
        job = partial(_commit, session.run, commit, snapshot, keep_shards, report)
        session.saver.submit(job, update=state.update)
    return after


def save_and_stop(
    session: Session, state: TrainState, writers: ShardWriters, lost: CitError | None = None
) -> NoReturn:
    """Save the state and end the try.

    Args:
        session: The run.
        state: Where it stands.
        writers: What writes the shards of this outer step.
        lost: Why it ends, where nobody asked it to.

    Raises:
        StoppedError: It was asked to.
        PeerLostError: What writes the shards is gone, on this rank or on another.
        DamagedError: A shard is damaged.
    """
    save_within_step(session, state, writers)
    session.saver.wait()
    # None ends before all is written: launchers kill the ranks that are left.
    told = session.world.agree("saved the state", [lost is not None, session.stop.requested])
    if lost is not None:
        raise lost
    if any(is_lost for is_lost, _ in told):
        session.world.agree("ended", None)  # raises what that rank tells
    session.stop.take_over([requested for _, requested in told])
    raise StoppedError("asked to stop")


def save_within_step(session: Session, state: TrainState, writers: ShardWriters) -> None:
    """Save the state in the middle of an outer step, while training goes on."""
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
    """Wait until everything is written, and leave no shards where none are kept."""
    session.saver.wait()
    keep = session.config.train.keep_shards
    if session.world.is_first and keep != "all" and not num_kept_shards(keep):
        remove_folder(session.run.path / "shards")


def num_kept_shards(keep: str) -> int:
    """Outer steps whose shards `--keep-shards` keeps, when it is not `all`."""
    return 0 if keep == "none" else int(keep)


def _write_lane(
    session: Session,
    writers: ShardWriters,
    stream: ShardWriterThread,
    scan: LaneScan,
    state: TrainState,
) -> dict[str, Any]:
    """Write the ledger tables of one lane; gives what the commit says of it, as JSON."""
    run = session.run
    num_updates = state.update - writers.first_update
    place = {"outer_step": state.outer_step, "lane": scan.lane}
    pairs_per_update = session.config.pairs_per_update
    uses = count_uses(
        stream.rows.slice(0, num_updates * pairs_per_update),
        first_update=state.update - num_updates + 1,
        pairs_per_update=pairs_per_update,
        **place,
    )
    rows = stream.selected_rows()
    files = [
        *write_scan(run, scan, rows),
        run.write_table("used", uses, **place),
        run.write_table("rejects", stream.reject_rows(), **place),
    ]
    return {
        "selected": len(rows),
        "files": [asdict(entry) for entry in files],
        "cursor": asdict(scan.cursor),
        "metrics": {
            **metrics_record(scan),
            "staleness": session.ahead.staleness,
            **writers.seconds(stream),
        },
    }


def _commit(
    run: Run,
    commit: Commit,
    snapshot: Snapshot,
    keep_shards: str,
    report: Callable[[], None],
) -> None:
    assert commit.checkpoint is not None
    save_checkpoint(run.path / commit.checkpoint, snapshot)
    run.commit(commit)
    point_to(run.path, "last", commit.checkpoint)
    if commit.best:
        point_to(run.path, "best", commit.best["checkpoint"])
    remove_mid_step(run)
    _tidy(run, commit, keep_shards)
    report()


def _save(run: Run, mid_step: MidStep, snapshot: Snapshot) -> None:
    save_checkpoint(run.path / mid_step.checkpoint, snapshot)
    write_mid_step(run, mid_step)
    best = [mid_step.best["checkpoint"]] if mid_step.best else []
    for path in checkpoints_except(run.path, [mid_step.checkpoint, *_needed(run), *best]):
        remove_folder(path)


def _needed(run: Run) -> list[str]:
    """The checkpoints of the last two commits: one to go on from, and one should it be damaged.

    `--ahead` selects with the older one, which after the first commit is the one of the start.
    """
    # A run of thousands of outer steps must not read all of them at each.
    last = run.commits(last=2)
    commits = [commit.checkpoint for commit in last if commit.checkpoint]
    return [checkpoint_name(0), *commits][-2:]


def _tidy(run: Run, commit: Commit, keep_shards: str) -> None:
    """Remove checkpoints and shards that nothing needs any more."""
    best = [commit.best["checkpoint"]] if commit.best else []
    for path in checkpoints_except(run.path, [*_needed(run), *best]):
        remove_folder(path)
    if keep_shards != "all":
        # Whoever reads batches looks once more into the last folder, for its end.
        num_kept = max(num_kept_shards(keep_shards), 1)
        kept = {step_folder(commit.outer_step - back) for back in range(num_kept)}
        for folder in (run.path / "shards").glob("step=*"):
            # Not what the next outer step has begun to write.
            if folder.name not in kept and folder.name <= step_folder(commit.outer_step):
                remove_folder(folder)
