"""Repairing a run: files are written again where possible, and else put aside or reported."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cit_curate.config import MetadataConfig
from cit_curate.errors import CitError, DamagedError
from cit_curate.metadata.entries import read_metadata
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
from cit_curate.storage.row_cache import load_part, values_path
from cit_train.loop.recovery.checkpoint import check_checkpoint, point_to
from cit_train.loop.recovery.find import (
    check_logs,
    check_shards,
    feature_parts,
    needed_checkpoints,
    shard_folders,
)
from cit_train.loop.recovery.ledger import check_ledger, extra_files, stray_manifests
from cit_train.loop.recovery.mid_step import load_mid_step
from cit_train.loop.recovery.roll_back import (
    later_paths,
    put_aside,
    roll_back_to,
    whole_checkpoints,
)
from cit_train.loop.recovery.shards import remake_shards

OpenPools = Callable[[], PoolMixture | None]


@dataclass
class Repair:
    """The repairs of a run so far; owned by `repair_run`.

    Attributes:
        run: The run.
        dry_run: Whether nothing is changed.
        done: One message for each repair, in order; of a dry run, for each that would be made.
        failed: One message for each repair that failed.
    """

    run: Run
    dry_run: bool
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def do(self, message: str, act: Callable[..., object], *args: object) -> None:
        """Make one repair, and record its message, or that of its CitError."""
        try:
            if not self.dry_run:
                act(*args)
        except CitError as error:
            self.failed.append(str(error))
        else:
            self.done.append(message)

    def put_aside(self, paths: Sequence[Path], why: str) -> None:
        """Move files of the run to RUN/damaged."""
        paths = [path for path in paths if path.exists()]
        if paths:
            names = ", ".join(str(path.relative_to(self.run.path)) for path in paths)
            message = f"put aside in {self.run.path / 'damaged'}: {names} ({why})"
            self.do(message, put_aside, self.run, paths)


def repair_run(run: Run, open_pools: OpenPools, *, dry_run: bool = False) -> Repair:
    """Repair all damage that can be repaired; the caller holds the lock of the run.

    Args:
        run: The run.
        open_pools: Opens the pools that the run was made from, for shards; None = not available.
        dry_run: Change nothing, and report what would be done.

    Raises:
        DamagedError: Its config.json is damaged, and the rest cannot be checked without it.
    """
    repair = Repair(run, dry_run)
    config = run.config
    beside = leftovers(run.path.parent, below=False, name=run.path.name)
    for path in [*leftovers(run.path), *beside]:
        repair.do(f"removed {path}, left by a writer that was killed", _remove, path)
    commits = _repair_ledger(repair)
    gone = {*later_paths(run, commits)} if commits else set()
    _repair_metadata(repair, commits, config)
    _repair_checkpoints(repair, commits, gone)
    if run.path / "mid_step.json" not in gone and (run.path / "mid_step.json").exists():
        try:
            load_mid_step(run, num_commits=len(commits))
        except DamagedError as error:
            middle = [run.path / "mid_step.json", run.path / "mid_step"]
            repair.put_aside(middle, f"{error}; the run resumes from its last commit")
    _repair_caches(repair, config)
    _repair_logs(repair)
    for folder in shard_folders(run, commits, config):
        if folder.name <= step_folder(len(commits)):
            _repair_shards(repair, folder, commits, config, open_pools)
    return repair


def _repair_ledger(repair: Repair) -> Sequence[Commit]:
    """Roll the run back if its ledger or last checkpoint is damaged; returns the kept commits."""
    run, findings = repair.run, Findings()
    state = check_ledger(run, findings)
    repair.put_aside(stray_manifests(run), "not the manifest of an outer step")
    for commit in state.commits:
        repair.put_aside(extra_files(run, commit), "no manifest names them")
    number = whole_checkpoints(run, state.commits)
    if number == state.num_steps:
        return state.commits
    if not number:
        repair.failed.append(
            f"{run.path} cannot resume from any outer step before the damage, so it stays "
            "unchanged: start it again with the same command and --overwrite"
        )
        return state.commits
    kept = state.commits[:number]
    message = (
        f"set the run back to outer step {number - 1}, update {kept[-1].update}; what came after "
        f"it is in {run.path / 'damaged'}, and is made again with --resume"
    )
    repair.do(message, roll_back_to, run, kept)
    return kept


def _repair_metadata(repair: Repair, commits: Sequence[Commit], config: dict[str, Any]) -> None:
    path = repair.run.path / "metadata.json"
    wanted = next((e for e in commits[0].files if e.path == path.name), None) if commits else None
    if wanted is None:
        return
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() == wanted.sha256:
        return

    def write() -> None:
        names = {each.name for each in fields(MetadataConfig)} & config.keys()
        values = {name: config[name] for name in names}
        own = MetadataConfig(**{**values, "templates": tuple(config.get("templates", ("{}",)))})
        text = json_text([asdict(entry) for entry in read_metadata(own).entries])
        if hashlib.sha256(text.encode()).hexdigest() != wanted.sha256:
            raise DamagedError(f"{path} cannot be written again: {own.metadata} has changed since")
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    repair.do(f"wrote {path} again", write)


def _repair_checkpoints(repair: Repair, commits: Sequence[Commit], gone: set[Path]) -> None:
    run = repair.run
    needed = {run.path / name for name in needed_checkpoints(commits, run.config, for_resume=True)}
    damaged = set()
    for path in sorted((run.path / "checkpoints").glob("update-*")):
        # `_repair_ledger` has decided about the checkpoints that the run resumes from.
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
        is_right = link.is_symlink() and link.readlink() == Path(path.name)
        if checkpoint and path.is_dir() and path not in damaged and not is_right:
            repair.do(f"pointed {link} to {path.name}", point_to, run.path, label, checkpoint)
        elif link.is_symlink() and (not link.exists() or path in damaged):
            repair.do(f"removed {link}, which pointed to no whole checkpoint", link.unlink)


def _repair_caches(repair: Repair, config: dict[str, Any]) -> None:
    """Put aside or remove the damaged files that a run makes again: index, features, its pool."""
    run = repair.run
    if (run.path / "index").is_dir():
        try:
            load_vectors(run.path / "index")
        except DamagedError as error:
            repair.put_aside([run.path / "index"], f"{error}; it is built again when needed")
    for path in feature_parts(run, config):
        try:
            load_part(path)
        except DamagedError as error:
            repair.do(f"removed features: {error}", _remove, path, values_path(path))
    if (run.path / "pool").is_dir():
        findings = check_pool(run.path / "pool")
        if findings.damage:
            first = findings.damage[0]
            repair.put_aside(
                [run.path / "pool"], f"{first.file} {first.what}; --resume makes it again"
            )
        elif any("pool.duckdb" in note for note in findings.notes):
            pool = Pool.open(run.path / "pool")
            repair.do(f"wrote {pool.path / 'pool.duckdb'} again", pool.rebuild_catalog)


def _repair_logs(repair: Repair) -> None:
    findings = Findings()
    check_logs(repair.run, findings)
    for path in (Path(each.file) for each in findings.damage):
        lines = sound_lines(path)
        repair.put_aside([path], "it cannot be read")
        if path.name == "metrics.jsonl":
            message = f"kept the {len(lines):,} lines of {path} that can be read"
            repair.do(message, path.write_bytes, b"".join(lines))


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
    run, findings = repair.run, Findings()
    check_shards(run, folder, len(commits), config, findings)
    if not findings.damage:
        return
    step = int(folder.name.removeprefix("step="))
    if step == len(commits):
        for lane in range(int(config.get("lanes", 1))):
            prefix = lane_prefix(lane)
            message = f"removed the shards of lane {lane} in {folder} from the first damaged one on"
            repair.do(message, closed_shards, folder, prefix)
        return

    def write() -> None:
        pools = open_pools()
        if pools is None:
            raise DamagedError(
                f"the shards in {folder} need the pool of {run.path}, which is not at the path in "
                "its config.json; name it with --pool POOL"
            )
        remake_shards(run, pools, commits, step)

    repair.do(f"wrote the damaged shards in {folder} again, from the ledger and the pool", write)
