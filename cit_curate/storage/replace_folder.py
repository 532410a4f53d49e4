"""Replace a folder by a new one, so that one of the two is always there, whole.

Not every system can exchange two folders in one call, so between two renames neither has the name.
A process killed at that moment leaves the old folder aside, and the next writer puts it back.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from cit_curate.storage.durable import TEMPORARY_PREFIX, atomic_folder


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `out` when the block succeeds.

    The caller holds the lock of `out`, and has decided that the old folder may go. What a killed
    writer left is removed first; an old folder that it had moved aside is put back.
    """
    settle(out)
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    with _old_or_new(out), atomic_folder(out, aside=aside_path(out)) as folder:
        yield folder


def aside_path(out: Path) -> Path:
    """The path of the old folder while a new one replaces it."""
    return out.with_name(f"{TEMPORARY_PREFIX}0-{out.name}")


@contextmanager
def _old_or_new(out: Path) -> Iterator[None]:
    """On exit, remove the folder that was moved aside, or put it back if there is no new one."""
    try:
        yield
    finally:
        if aside_path(out).exists():
            if out.exists():
                shutil.rmtree(aside_path(out))
            else:
                aside_path(out).rename(out)


def settle(out: Path) -> None:
    """Remove what killed writers left beside `out`, and put an old folder back.

    The caller holds the lock of `out`, so there is no other living writer.
    """
    for path in out.parent.glob(f"{TEMPORARY_PREFIX}*-{escape(out.name)}"):
        pid = path.name.removeprefix(TEMPORARY_PREFIX).removesuffix(f"-{out.name}")
        if pid == "0" and not out.exists():
            # Killed between the two renames: the old folder is still the valid one.
            path.rename(out)
        elif pid.isdigit():
            shutil.rmtree(path)
