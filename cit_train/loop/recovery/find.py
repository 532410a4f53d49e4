"""Checking every byte of a run: ledger, checkpoints, shards, index, features, logs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cit_curate.errors import DamagedError
from cit_curate.metadata.stored_index import load_vectors
from cit_curate.pool.check import check_pool
from cit_curate.run.ledger import HEAD_FILES, Commit, Run
from cit_curate.run.metrics_log import Record
from cit_curate.run.paths import lane_prefix, shard_folder, shard_name, step_folder
from cit_curate.run.shards import ClosedShard, shard_entry
from cit_curate.storage.durable import check_file, json_text, leftovers, read_listing
from cit_curate.storage.findings import Findings
from cit_train.inner_loop.features import load_part
from cit_train.loop.recovery.checkpoint import check_checkpoint, checkpoint_name
from cit_train.loop.recovery.ledger import check_ledger, uncommitted
from cit_train.loop.recovery.mid_step import checked_mid_step
from cit_train.ranks.status import read_status
from cit_train.streaming.shard_stream import read_rejects, rejects_path

_SHARD = re.compile(r"(lane\d{5})-(\d{6})\.(tar|json)")


def find_damage(run: Run) -> Findings:
    """Check every byte of a run that a manifest, a hash or a format speaks of."""
    found = Findings()
    config = check_head(run, found)
    state = check_ledger(run, found)
    check_checkpoints(run, state.commits, state.num_steps, config, found)
    update = max((each.update for each in state.commits if each.checkpoint), default=0)
    if (run.path / "mid_step.json").exists():
        with found.catching(run.path / "mid_step.json", _mend(run)):
            if place := checked_mid_step(run, num_commits=state.num_steps):
                update = place.update
    for folder in shard_folders(run, state.commits, config):
        check_shards(run, folder, state.num_steps, config, found)
    if (run.path / "index").is_dir():
        with found.catching(run.path / "index", f"it is made anew; {_mend(run)}"):
            load_vectors(run.path / "index")
    for path in feature_parts(run, config):
        with found.catching(path, _mend(run)):
            load_part(path)
    if (run.path / "pool").is_dir():
        of_pool = check_pool(run.path / "pool")
        found.damage += of_pool.damage
        found.notes += of_pool.notes
    lines = check_logs(run, found)
    if lines is not None:
        _note_lost_lines(run, lines, state.commits, update, found)
    found.notes += [
        f"{path} belongs to no commit: it is of a try that goes on, or was killed"
        for path in uncommitted(run, state.num_steps)
    ]
    found.notes += [f"{path} was left by a writer that was killed" for path in leftovers(run.path)]
    return found


def check_head(run: Run, found: Findings) -> dict[str, Any]:
    """Compare what the run was started with; gives its config, empty where it cannot be read."""
    path = run.path / "head.json"
    advice = "put it back from a copy; if it was changed on purpose, remove head.json"
    if path.exists():
        with found.catching(path, "if config.json is as it should be, remove it"):
            for entry in read_listing(path):
                with found.catching(run.path / entry.path, advice):
                    check_file(run.path, entry)
    else:
        told = f"{path} is not there, so changes of {' and '.join(HEAD_FILES)} do not show"
        found.notes.append(told)
    try:
        return run.config
    except DamagedError as error:
        if not path.exists():
            found.add(run.path / "config.json", str(error), advice)
        return {}


def check_checkpoints(
    run: Run, commits: Sequence[Commit], num_steps: int, config: dict[str, Any], found: Findings
) -> None:
    """Compare every checkpoint with its manifest; those that the run needs must be there."""
    folders = {path.name: path for path in (run.path / "checkpoints").glob("update-*")}
    needed = needed_checkpoints(commits, config) if len(commits) == num_steps else []
    for name in needed:
        if Path(name).name not in folders:
            found.add(run.path / name, "is missing, and the last commit needs it", _mend(run))
    for path in sorted(folders.values()):
        with found.catching(path, _mend(run)):
            check_checkpoint(path)
    for label in ("last", "best"):
        link = run.path / "checkpoints" / label
        if link.is_symlink() and not link.exists():
            found.add(link, f"leads to {link.readlink()}, which is missing", _mend(run))


def needed_checkpoints(
    commits: Sequence[Commit], config: Mapping[str, Any], *, to_go_on: bool = False
) -> list[str]:
    """The checkpoints that a run needs after its last commit: `to_go_on`, and the best."""
    if not commits or commits[-1].checkpoint is None:
        return []
    last = commits[-1]
    needed = [str(last.checkpoint)]
    if config.get("ahead") and last.update < int(config.get("max_updates", 0)):
        needed.append(checkpoint_name(commits[-2].update if len(commits) > 1 else 0))
    return needed if to_go_on or not last.best else [*needed, str(last.best["checkpoint"])]


def shard_folders(run: Run, commits: Sequence[Commit], config: Mapping[str, Any]) -> list[Path]:
    """The folders of shards, by outer step: those there are, and those `keep_shards` keeps."""
    folders = {*(run.path / "shards").glob("step=*")}
    keep = config.get("keep_shards", "none") if commits and commits[-1].checkpoint else "none"
    if keep not in ("none", "0"):
        kept = commits if keep == "all" else commits[-int(keep) :]
        folders |= {shard_folder(run.path, commit.outer_step) for commit in kept}
    return sorted(folders)


def check_shards(
    run: Run, folder: Path, num_steps: int, config: dict[str, Any], found: Findings
) -> None:
    """Compare the shards of an outer step with what lies beside them, sample by sample.

    Those of one that is not committed yet may lack some: they are written again from there on.
    """
    is_committed = folder.name < step_folder(num_steps)
    if not is_committed and not (run.path / "mid_step.json").exists():
        return
    for lane in range(int(config.get("lanes", 1))):
        prefix = lane_prefix(lane)
        paths = sorted(path for path in folder.glob(f"{prefix}-*") if _SHARD.fullmatch(path.name))
        stems = sorted({path.stem for path in paths})
        entries = []
        for number, stem in enumerate(stems):
            path = folder / f"{stem}.tar"
            if not is_committed and not path.with_suffix(".json").exists():
                continue
            with found.catching(path, _mend(run)):
                if path.name != shard_name(prefix, number):
                    raise DamagedError(f"{path} follows {number} others: one is missing")
                entry = shard_entry(path)
                _check_text(path.with_suffix(".json"), vars(entry))
                if entry.path != path.name:
                    raise DamagedError(f"{path} is described as {entry.path}")
                for sample in ClosedShard(folder, entry):
                    assert sample.pair_key
                entries.append(vars(entry))
        listed = folder / f"{prefix}.json"
        if is_committed or listed.exists():
            with found.catching(listed, _mend(run)):
                if not listed.exists():
                    raise DamagedError(f"{listed} is missing")
                if len(entries) == len(stems):
                    _check_text(listed, entries)
        with found.catching(rejects_path(folder, lane), _mend(run)):
            read_rejects(rejects_path(folder, lane))


def feature_parts(run: Run, config: dict[str, Any]) -> list[Path]:
    """The parts of the run's cached features, by their files of keys."""
    folder = Path(config.get("feature_cache") or run.path / "features")
    return sorted(folder.glob("*/part-*.keys.npy"))


def check_logs(run: Run, found: Findings) -> list[Record] | None:
    """Read what is for people: how the last try ended, and metrics.jsonl; gives its lines."""
    with found.catching(run.path / "status.json", _mend(run)):
        read_status(run.path)
    with found.catching(run.path / "metrics.jsonl", _mend(run)):
        return run.metrics()
    return None


def _note_lost_lines(
    run: Run, lines: Sequence[Record], commits: Sequence[Commit], update: int, found: Findings
) -> None:
    """Say what metrics.jsonl lacks of the updates up to this one, and of the outer steps.

    It is no damage: a machine that lost power loses the last lines, and nothing is made of them.
    """
    lanes = {(each.outer_step, lane) for each in commits for lane in range(len(each.cursors))}
    trained, scanned = {*range(1, update + 1)}, lanes if lines or update else set()
    for line in lines:
        if line.get("kind") == "train":
            trained.discard(line["update"])
        elif line.get("kind") == "outer_step":
            scanned.discard((line["outer_step"], line["lane"]))
    if trained or scanned:
        found.notes.append(
            f"{run.path / 'metrics.jsonl'} has no lines of {len(trained):,} updates and "
            f"{len(scanned):,} scans; the report and the charts go without"
        )


def _check_text(path: Path, value: object) -> None:
    if path.read_bytes() != json_text(value).encode():
        raise DamagedError(f"{path} has changed since it was written")


def _mend(run: Run) -> str:
    return f"mend it with: cit repair {run.path}"
