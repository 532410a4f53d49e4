"""Finding damage in a run: its ledger, checkpoints, shards, index, features and logs."""

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
from cit_curate.run.shard_manifest import read_shard_manifest
from cit_curate.run.shards import ClosedShard
from cit_curate.storage.durable import check_file, json_text, leftovers, read_listing
from cit_curate.storage.findings import Findings
from cit_curate.storage.row_cache import load_part
from cit_train.loop.recovery.checkpoint import check_checkpoint, checkpoint_name
from cit_train.loop.recovery.ledger import check_ledger, uncommitted
from cit_train.loop.recovery.mid_step import load_mid_step
from cit_train.ranks.status import read_status
from cit_train.streaming.shard_stream import read_rejects, rejects_path

_SHARD = re.compile(r"(lane\d{5})-(\d{6})\.(tar|json)")


def find_damage(run: Run) -> Findings:
    """Check every byte of a run that a manifest, a hash or a format covers."""
    findings = Findings()
    config = check_head(run, findings)
    state = check_ledger(run, findings)
    check_checkpoints(run, state.commits, state.num_steps, config, findings)
    update = max((each.update for each in state.commits if each.checkpoint), default=0)
    if (run.path / "mid_step.json").exists():
        with findings.catching(run.path / "mid_step.json", _advice(run)):
            if mid_step := load_mid_step(run, num_commits=state.num_steps):
                update = mid_step.update
    for folder in shard_folders(run, state.commits, config):
        check_shards(run, folder, state.num_steps, config, findings)
    if (run.path / "index").is_dir():
        with findings.catching(run.path / "index", f"it is built again; {_advice(run)}"):
            load_vectors(run.path / "index")
    for path in feature_parts(run, config):
        with findings.catching(path, _advice(run)):
            load_part(path)
    if (run.path / "pool").is_dir():
        of_pool = check_pool(run.path / "pool")
        findings.damage += of_pool.damage
        findings.notes += of_pool.notes
    lines = check_logs(run, findings)
    if lines is not None:
        _note_lost_lines(run, lines, state.commits, update, findings)
    findings.notes += [
        f"{path} belongs to no commit: its attempt is still running, or was killed"
        for path in uncommitted(run, state.num_steps)
    ]
    findings.notes += [
        f"{path} was left by a writer that was killed" for path in leftovers(run.path)
    ]
    return findings


def check_head(run: Run, findings: Findings) -> dict[str, Any]:
    """Check the files that describe the run's start; returns its config, empty if unreadable."""
    path = run.path / "head.json"
    advice = "restore it from a copy; if it was changed on purpose, remove head.json"
    if path.exists():
        with findings.catching(path, "if config.json is correct, remove it"):
            for entry in read_listing(path):
                with findings.catching(run.path / entry.path, advice):
                    check_file(run.path, entry)
    else:
        files = " and ".join(HEAD_FILES)
        findings.notes.append(f"{path} is missing, so changes of {files} cannot be detected")
    try:
        return run.config
    except DamagedError as error:
        if not path.exists():
            findings.add(run.path / "config.json", str(error), advice)
        return {}


def check_checkpoints(
    run: Run, commits: Sequence[Commit], num_steps: int, config: dict[str, Any], findings: Findings
) -> None:
    """Check every checkpoint against its manifest; those that the run needs must exist."""
    folders = {path.name: path for path in (run.path / "checkpoints").glob("update-*")}
    needed = needed_checkpoints(commits, config) if len(commits) == num_steps else []
    for name in needed:
        if Path(name).name not in folders:
            findings.add(run.path / name, "is missing, and the last commit needs it", _advice(run))
    for path in sorted(folders.values()):
        with findings.catching(path, _advice(run)):
            check_checkpoint(path)
    for label in ("last", "best"):
        link = run.path / "checkpoints" / label
        if link.is_symlink() and not link.exists():
            findings.add(link, f"points to {link.readlink()}, which is missing", _advice(run))


def needed_checkpoints(
    commits: Sequence[Commit], config: Mapping[str, Any], *, for_resume: bool = False
) -> list[str]:
    """The checkpoints that a run needs after its last commit; `for_resume` leaves out the best."""
    if not commits or commits[-1].checkpoint is None:
        return []
    last = commits[-1]
    needed = [str(last.checkpoint)]
    if config.get("ahead") and last.update < int(config.get("max_updates", 0)):
        needed.append(checkpoint_name(commits[-2].update if len(commits) > 1 else 0))
    return needed if for_resume or not last.best else [*needed, str(last.best["checkpoint"])]


def shard_folders(run: Run, commits: Sequence[Commit], config: Mapping[str, Any]) -> list[Path]:
    """The shard folders, by outer step: the existing ones, and all that `keep_shards` promises."""
    folders = {*(run.path / "shards").glob("step=*")}
    keep = config.get("keep_shards", "none") if commits and commits[-1].checkpoint else "none"
    if keep not in ("none", "0"):
        kept = commits if keep == "all" else commits[-int(keep) :]
        folders |= {shard_folder(run.path, commit.outer_step) for commit in kept}
    return sorted(folders)


def check_shards(
    run: Run, folder: Path, num_steps: int, config: dict[str, Any], findings: Findings
) -> None:
    """Check the shards of an outer step against their JSON files, sample by sample.

    An uncommitted outer step may lack some shards; a resumed run writes them.
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
            with findings.catching(path, _advice(run)):
                if path.name != shard_name(prefix, number):
                    raise DamagedError(f"{path} follows {number} others: one is missing")
                manifest = read_shard_manifest(path)
                entry = manifest.entry
                if manifest.samples is None:  # of a run from before these files were sealed
                    _check_text(path.with_suffix(".json"), vars(entry))
                if entry.path != path.name:
                    raise DamagedError(f"{path} is described as {entry.path}")
                for sample in ClosedShard(folder, entry):
                    assert sample.pair_key
                entries.append(vars(entry))
        listed = folder / f"{prefix}.json"
        if is_committed or listed.exists():
            with findings.catching(listed, _advice(run)):
                if not listed.exists():
                    raise DamagedError(f"{listed} is missing")
                if len(entries) == len(stems):
                    _check_text(listed, entries)
        with findings.catching(rejects_path(folder, lane), _advice(run)):
            read_rejects(rejects_path(folder, lane))


def feature_parts(run: Run, config: dict[str, Any]) -> list[Path]:
    """The key files of the run's cached features, one for each part."""
    folder = Path(config.get("feature_cache") or run.path / "features")
    return sorted(folder.glob("*/part-*.keys.npy"))


def check_logs(run: Run, findings: Findings) -> list[Record] | None:
    """Check status.json and metrics.jsonl; returns the lines of the latter."""
    with findings.catching(run.path / "status.json", _advice(run)):
        read_status(run.path)
    with findings.catching(run.path / "metrics.jsonl", _advice(run)):
        return run.metrics()
    return None


def _note_lost_lines(
    run: Run, lines: Sequence[Record], commits: Sequence[Commit], update: int, findings: Findings
) -> None:
    """Note how many updates and scans have no line in metrics.jsonl.

    That is not damage: a power failure loses the last lines, and nothing is computed from them.
    """
    lanes = {(each.outer_step, lane) for each in commits for lane in range(len(each.cursors))}
    trained, scanned = {*range(1, update + 1)}, lanes if lines or update else set()
    for line in lines:
        if line.get("kind") == "train":
            trained.discard(line["update"])
        elif line.get("kind") == "outer_step":
            scanned.discard((line["outer_step"], line["lane"]))
    if trained or scanned:
        findings.notes.append(
            f"{run.path / 'metrics.jsonl'} has no lines of {len(trained):,} updates and "
            f"{len(scanned):,} scans; the report and the charts leave them out"
        )


def _check_text(path: Path, value: object) -> None:
    if path.read_bytes() != json_text(value).encode():
        raise DamagedError(f"{path} has changed since it was written")


def _advice(run: Run) -> str:
    return f"repair it with: cit repair {run.path}"
