"""What `cit verify` and `cit repair` do, for runs and pools, and what they print."""

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
    """Check every byte of a run or a pool: hashes, counts, footers. Ends with 4 if any is damaged.

        cit verify RUN

    Args:
        path: The folder of a run or of a pool.
        json: Print one JSON document: path, damaged, damage (file, what, advice), notes.
    """
    found = _checked(path, alone=False)
    print_findings(remote_url(path) or str(path), found, as_json=json)


def repair(
    path: tyro.conf.Positional[Path],
    *,
    pool: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Mend a run or a pool: what can be made again is, and what cannot is told, with code 4.

    A ledger is set back to its last whole outer step, a run without its last checkpoint to the one
    before; --resume makes again what came after. Shards are written again from the ledger and the
    pool. What is taken out is put aside in RUN/damaged, but for what is made again to the byte.

        cit repair RUN --dry-run
        cit repair RUN

    Args:
        path: The folder of a run or of a pool.
        pool: Of a run, the pool's folder; default the one it was made from. Of several, once for
            each: --pool A --pool B, or --pool NAME:A when the run gave it another name.
        dry_run: Tell what would be done, and do nothing.
        json: Print one JSON document: path, done, failed, and what `cit verify` finds then.
    """
    if (url := remote_url(path)) is not None:
        raise ConfigError(f"{url} is in a store, where nothing is mended")
    with _only_writer(path, dry_run) as unlocked:
        put_back = _put_back(path, dry_run)
        done, failed = (
            _repair_pool(path, dry_run) if _is_pool(path) else _repair_run(path, pool, dry_run)
        )
        done = [*unlocked, *put_back, *done]
        # What is left is known once something has been done.
        found = Findings() if dry_run and done else _checked(path)
    name = str(path)
    if json:
        value: dict[str, Any] = {"path": name, "dry_run": dry_run, "done": done, "failed": failed}
        print_json(value | found.as_json())
        if failed or found.damage:
            raise SystemExit(DamagedError.exit_code)
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in done:
        console.print(Text(printable(f"dry run: {line}" if dry_run else line)))
    if not done and not failed and not found.damage:
        console.print(Text(printable(f"{name}: there is nothing to mend")))
    if failed:
        raise DamagedError("\n  ".join([f"{name} cannot be mended:", *failed]))
    found.raise_damage(name)


def _checked(path: Path, *, alone: bool = True) -> Findings:
    """Everything that is damaged; unless `alone`, it is said when somebody writes there."""
    writer = None if alone else writer_of(path.absolute())
    if _is_pool(path):
        from cit_curate.pool.check import check_pool

        found = check_pool(path)
    else:
        from cit_curate.run.ledger import Run
        from cit_train.loop.recovery.find import find_damage

        _check_run(path)
        found = find_damage(Run(path))
    if writer is not None:
        found.notes.append(f"{writer} writes there: what was in the making may look damaged")
    return found


def _is_pool(path: Path) -> bool:
    if remote_url(path) is not None:
        return True
    return (path / "pool.json").is_file() or (path / "pairs").is_dir()


def _check_run(path: Path) -> None:
    if not (path / "config.json").is_file() and not (path / "manifests").is_dir():
        raise ConfigError(f"{path} is neither a run nor a pool")


@contextmanager
def _only_writer(path: Path, dry_run: bool) -> Iterator[list[str]]:
    """Hold the lock of a run or pool; says whether a killed writer had left it.

    It is gone afterwards, unless nothing is to be done.
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
    """Put an old folder back, whose writer was killed before the new one had taken its place."""
    aside = aside_path(path)
    if path.exists() or not aside.is_dir():
        return []
    if dry_run:
        raise ConfigError(f"{path} is in {aside}; cit repair {path} puts it back")
    settle(path)
    return [f"put {path} back in its place"]


def _repair_pool(path: Path, dry_run: bool) -> tuple[list[str], list[str]]:
    from cit_curate.pool.check import repair_pool

    try:
        return repair_pool(path, dry_run=dry_run), []
    except DamagedError:  # of the manifest, which a check tells
        return [], []


def _repair_run(path: Path, pools: Sequence[str], dry_run: bool) -> tuple[list[str], list[str]]:
    from cit_curate.run.ledger import Run
    from cit_train.loop.recovery.repair import repair_run
    from cit_train.loop.recovery.shards import pools_of

    _check_run(path)
    run = Run(path)
    try:
        repair = repair_run(run, lambda: pools_of(run, pools), dry_run=dry_run)
    except DamagedError:  # of config.json, which a check tells
        return [], []
    return repair.done, repair.failed
