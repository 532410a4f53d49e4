"""The commit of an outer step, and what is removed once nothing needs it any more."""

import shutil
from dataclasses import replace
from typing import Any

import pyarrow as pa

from cit_curate.curation import write_scan
from cit_curate.ledger import SCHEMAS, Commit, step_folder
from cit_train.batches import LaneBatch, count_uses
from cit_train.checkpoint import checkpoint_name, checkpoints_except, point_to, save_checkpoint
from cit_train.session import Session
from cit_train.step_batches import Streams
from cit_train.trainer import TrainState


def commit_step(
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
