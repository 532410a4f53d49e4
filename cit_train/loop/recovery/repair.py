"""Mending a run: what can be made again is, and what cannot is put aside or told."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cit_curate.config import MetadataConfig
from cit_curate.errors import CitError, DamagedError
from cit_curate.metadata.entries import load_metadata
from cit_curate.metadata.stored_index import load_vectors
from cit_curate.pool.check import check_pool
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.metrics_log import sound_lines
from cit_curate.run.paths import lane_prefix, step_folder
from cit_curate.run.shards import closed_shards
from cit_curate.storage.durable import atomic_file, json_text, leftovers
from cit_curate.storage.findings import Findings
from cit_train.inner_loop.features import load_part, values_path
from cit_train.loop.recovery.checkpoint import check_checkpoint, point_to
from cit_train.loop.recovery.find import (
    check_logs,
    check_shards,
    feature_parts,
    needed_checkpoints,
    shard_folders,
)
from cit_train.loop.recovery.ledger import alien_manifests, check_ledger, extra_files
from cit_train.loop.recovery.mid_step import checked_mid_step
from cit_train.loop.recovery.roll_back import (
    beyond,
    put_aside,
    roll_back_to,
    whole_checkpoints,
)
from cit_train.loop.recovery.shards import remake_shards

OpenPools = Callable[[], PoolMixture | None]


@dataclass
class Repair:
    """What is done to a run, in order, and what could not be; owned by `repair_run`.

    Attributes:
        run: The run.
        dry_run: Only tell.
        done: What was done, or would be.
        failed: What could not be.
    """

    run: Run
    dry_run: bool
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def do(self, told: str, act: Callable[..., object], *args: object) -> None:
        """Do something, and tell it; a failure that a person can act on is kept."""
        try:
            if not self.dry_run:
                act(*args)
        except CitError as error:
            self.failed.append(str(error))
        else:
            self.done.append(told)

    def put_aside(self, paths: Sequence[Path], why: str) -> None:
        """Move files of the run to RUN/damaged."""
        paths = [path for path in paths if path.exists()]
        if paths:
            names = ", ".join(str(path.relative_to(self.run.path)) for path in paths)
            told = f"put aside in {self.run.path / 'damaged'}: {names} ({why})"
            self.do(told, put_aside, self.run, paths)


def repair_run(run: Run, open_pools: OpenPools, *, dry_run: bool = False) -> Repair:
    """Mend what can be mended; the caller holds the locks of the run.

    Args:
        run: The run.
        open_pools: Gives the pools that the run was made from, for shards; None = not to be had.
        dry_run: Change nothing, and tell what would be done.

    Raises:
        DamagedError: Its config.json is damaged, and nothing tells what the rest should be.
    """
    repair = Repair(run, dry_run)
    config = run.config
    beside = leftovers(run.path.parent, below=False, name=run.path.name)
    for path in [*leftovers(run.path), *beside]:
        repair.do(f"removed {path}, left by a writer that was killed", _remove, path)
    commits = _repair_ledger(repair)
    gone = {*beyond(run, commits)} if commits else set()
    _repair_metadata(repair, commits, config)
    _repair_checkpoints(repair, commits, gone)
    if run.path / "mid_step.json" not in gone and (run.path / "mid_step.json").exists():
        try:
            checked_mid_step(run, num_commits=len(commits))
        except DamagedError as error:
            middle = [run.path / "mid_step.json", run.path / "mid_step"]
            repair.put_aside(middle, f"{error}; the run goes on from its last commit")
    _repair_made_again(repair, config)
    _repair_logs(repair)
    for folder in shard_folders(run, commits, config):
        if folder.name <= step_folder(len(commits)):
            _repair_shards(repair, folder, commits, config, open_pools)
    return repair


def _repair_ledger(repair: Repair) -> Sequence[Commit]:
    """Set the run back where its ledger or its last checkpoint is damaged; gives what is kept."""
    run, found = repair.run, Findings()
    state = check_ledger(run, found)
    repair.put_aside(alien_manifests(run), "no manifests of an outer step")
    for commit in state.commits:
        repair.put_aside(extra_files(run, commit), "no manifest names them")
    number = whole_checkpoints(run, state.commits)
    if number == state.num_steps:
        return state.commits
    if not number:
        repair.failed.append(
            f"no outer step before the damage in {run.path} can be gone on from, so nothing is set "
            "back: start it again with the same command and --overwrite"
        )
        return state.commits
    kept = state.commits[:number]
    told = (
        f"set the run back to outer step {number - 1}, update {kept[-1].update}; what came after "
        f"it is in {run.path / 'damaged'}, and is made again with --resume"
    )
    repair.do(told, roll_back_to, run, kept)
    return kept


def _repair_metadata(repair: Repair, commits: Sequence[Commit], config: dict[str, Any]) -> None:
    path = repair.run.path / "metadata.json"
    wanted = next((e for e in commits[0].files if e.path == path.name), None) if commits else None
    if wanted is None:
        return
    there = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(there).hexdigest() == wanted.sha256:
        return

    def write() -> None:
        names = {each.name for each in fields(MetadataConfig)} & config.keys()
        values = {name: config[name] for name in names}
        asked = MetadataConfig(**{**values, "templates": tuple(config.get("templates", ("{}",)))})
        text = json_text([asdict(entry) for entry in load_metadata(asked)])
        if hashlib.sha256(text.encode()).hexdigest() != wanted.sha256:
            raise DamagedError(f"{path} cannot be made again: {asked.metadata} has changed since")
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    repair.do(f"wrote {path} again", write)


def _repair_checkpoints(repair: Repair, commits: Sequence[Commit], gone: set[Path]) -> None:
    run = repair.run
    needed = {run.path / name for name in needed_checkpoints(commits, run.config, to_go_on=True)}
    damaged = set()
    for path in sorted((run.path / "checkpoints").glob("update-*")):
        # Without what it needs to go on the run could not be set back, so it stays as it is.
        if path in gone | needed:
            continue
        try:
            check_checkpoint(path)
        except DamagedError as error:
            damaged.add(path)
            repair.put_aside([path], str(error))
    last = commits[-1] if commits else None
    if last is None or last.checkpoint is None:
        return
    labels = {"last": last.checkpoint, "best": last.best["checkpoint"] if last.best else ""}
    for label, checkpoint in labels.items():
        link, path = run.path / "checkpoints" / label, run.path / checkpoint
        leads = link.is_symlink() and link.readlink() == Path(path.name)
        if checkpoint and path.is_dir() and path not in damaged and not leads:
            repair.do(f"made {link} lead to {path.name}", point_to, run.path, label, checkpoint)
        elif link.is_symlink() and (not link.exists() or path in damaged):
            repair.do(f"removed {link}, which led to no checkpoint", link.unlink)


def _repair_made_again(repair: Repair, config: dict[str, Any]) -> None:
    """Put aside or remove what the run makes again by itself: index, features, its own pool."""
    run = repair.run
    if (run.path / "index").is_dir():
        try:
            load_vectors(run.path / "index")
        except DamagedError as error:
            repair.put_aside([run.path / "index"], f"{error}; it is made anew when needed")
    for path in feature_parts(run, config):
        try:
            load_part(path)
        except DamagedError as error:
            repair.do(f"removed features: {error}", _remove, path, values_path(path))
    if (run.path / "pool").is_dir():
        found = check_pool(run.path / "pool")
        if found.damage:
            told = f"{found.damage[0].file} {found.damage[0].what}; --resume makes it again"
            repair.put_aside([run.path / "pool"], told)
        elif any("pool.duckdb" in note for note in found.notes):
            pool = Pool.open(run.path / "pool")
            repair.do(f"wrote {pool.path / 'pool.duckdb'} again", pool.rebuild_catalog)


def _repair_logs(repair: Repair) -> None:
    found = Findings()
    check_logs(repair.run, found)
    for path in (Path(each.file) for each in found.damage):
        lines = sound_lines(path)
        repair.put_aside([path], "it cannot be read")
        if path.name == "metrics.jsonl":
            told = f"kept the {len(lines):,} lines of {path} that can be read"
            repair.do(told, path.write_bytes, b"".join(lines))


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _repair_shards(
    repair: Repair,
    folder: Path,
    commits: Sequence[Commit],
    config: dict[str, Any],
    open_pools: OpenPools,
) -> None:
    run, found = repair.run, Findings()
    check_shards(run, folder, len(commits), config, found)
    if not found.damage:
        return
    step = int(folder.name.removeprefix("step="))
    if step == len(commits):
        for lane in range(int(config.get("lanes", 1))):
            prefix = lane_prefix(lane)
            told = f"removed the shards of lane {lane} in {folder} from the first damaged one on"
            repair.do(told, closed_shards, folder, prefix)
        return

    def write() -> None:
        pools = open_pools()
        if pools is None:
            raise DamagedError(
                f"the shards in {folder} need the pool of {run.path}, which is not where its "
                "config.json says; name it with --pool POOL"
            )
        remake_shards(run, pools, commits, step)

    repair.do(f"wrote the damaged shards in {folder} again, from the ledger and the pool", write)
