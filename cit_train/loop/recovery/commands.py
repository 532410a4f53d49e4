"""The commands `cit verify` and `cit repair`, for runs and pools."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.text import Text

from cit_curate.errors import ConfigError, DamagedError, ResourceError
from cit_curate.printing import print_json
from cit_curate.storage.findings import Findings, print_findings
from cit_curate.storage.lock import lock_path, writer_lock, writer_of
from cit_curate.storage.remote import remote_url
from cit_curate.storage.replace_folder import aside_path, settle
from cit_curate.terminal import printable


def verify(path: tyro.conf.Positional[Path], *, json: bool = False) -> None:
    """Check every byte of a run or a pool: hashes, counts, footers. Exit code 4 on any damage.

        cit verify RUN

    Args:
        path: The folder of a run or of a pool.
        json: Print one JSON document: path, damaged, damage (file, what, advice), notes.
    """
    findings = _checked(path, alone=False)
    print_findings(remote_url(path) or str(path), findings, as_json=json)


def repair(
    path: tyro.conf.Positional[Path],
    *,
    pool: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Repair a run or a pool as far as possible; exit code 4 and a message if damage is left.

    A ledger is set back to its last whole outer step, and a run without its last checkpoint to the
    one before; --resume makes again what came after. Shards are written again from the ledger and
    the pool. Files that cannot be written again to the same bytes are put aside in RUN/damaged.

        cit repair RUN --dry-run
        cit repair RUN

    Args:
        path: The folder of a run or of a pool.
        pool: For a run, the pool's folder; default the one it was made from. For several pools,
            once for each: --pool A --pool B, or --pool NAME:A if the run named it differently.
        dry_run: Print what would be done, and change nothing.
        json: Print one JSON document: path, done, failed, and what `cit verify` finds afterwards.
    """
    if (url := remote_url(path)) is not None:
        raise ConfigError(f"{url} is in a store, where nothing is repaired")
    with _only_writer(path, dry_run) as unlocked:
        put_back = _put_back(path, dry_run)
        done, failed = (
            _repair_pool(path, dry_run) if _is_pool(path) else _repair_run(path, pool, dry_run)
        )
        done = [*unlocked, *put_back, *done]
        # The remaining damage is known only after the repairs.
        findings = Findings() if dry_run and done else _checked(path)
    name = str(path)
    if json:
        value: dict[str, Any] = {"path": name, "dry_run": dry_run, "done": done, "failed": failed}
        print_json(value | findings.as_json())
        if failed or findings.damage:
            raise SystemExit(DamagedError.exit_code)
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in done:
        console.print(Text(printable(f"dry run: {line}" if dry_run else line)))
    if not done and not failed and not findings.damage:
        console.print(Text(printable(f"{name}: there is nothing to repair")))
    if failed:
        raise DamagedError("\n  ".join([f"{name} cannot be repaired:", *failed]))
    findings.raise_damage(name)


def _checked(path: Path, *, alone: bool = True) -> Findings:
    """All damage; unless `alone`, with a note if another process is writing there."""
    writer = None if alone else writer_of(path.absolute())
    if _is_pool(path):
        from cit_curate.pool.check import check_pool

        findings = check_pool(path)
    else:
        from cit_curate.run.ledger import Run
        from cit_train.loop.recovery.find import find_damage

        _check_run(path)
        findings = find_damage(Run(path))
    if writer is not None:
        findings.notes.append(f"{writer} writes there: unfinished files may look damaged")
    return findings


def _is_pool(path: Path) -> bool:
    if remote_url(path) is not None:
        return True
    return (path / "pool.json").is_file() or (path / "pairs").is_dir()


def _check_run(path: Path) -> None:
    if not (path / "config.json").is_file() and not (path / "manifests").is_dir():
        raise ConfigError(f"{path} is neither a run nor a pool")


@contextmanager
def _only_writer(path: Path, dry_run: bool) -> Iterator[list[str]]:
    """Hold the lock of a run or pool; yields a message if a killed writer had left its lock.

    The lock is removed afterwards, except in a dry run.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} is neither a run nor a pool")
    path = path.absolute()
    lock, writer = lock_path(path), writer_of(path)
    is_stale = lock.exists() and writer is None
    if dry_run and writer is not None:
        raise ResourceError(f"{lock} is held by {writer}; wait for it to end")
    with nullcontext() if dry_run else writer_lock(path):
        yield [f"removed {lock}, left by a writer that was killed"] if is_stale else []


def _put_back(path: Path, dry_run: bool) -> list[str]:
    """Restore an old folder whose writer was killed before the new one replaced it."""
    aside = aside_path(path)
    if path.exists() or not aside.is_dir():
        return []
    if dry_run:
        raise ConfigError(f"{path} is in {aside}; cit repair {path} restores it")
    settle(path)
    return [f"restored {path}"]


def _repair_pool(path: Path, dry_run: bool) -> tuple[list[str], list[str]]:
    from cit_curate.pool.check import repair_pool

    try:
        return repair_pool(path, dry_run=dry_run), []
    except DamagedError:  # of the manifest; the check reports it
        return [], []


def _repair_run(path: Path, pools: Sequence[str], dry_run: bool) -> tuple[list[str], list[str]]:
    from cit_curate.run.ledger import Run
    from cit_train.loop.recovery.repair import repair_run
    from cit_train.loop.recovery.shards import pools_of

    _check_run(path)
    run = Run(path)
    try:
        repair = repair_run(run, lambda: pools_of(run, pools), dry_run=dry_run)
    except DamagedError:  # of config.json; the check reports it
        return [], []
    return repair.done, repair.failed
