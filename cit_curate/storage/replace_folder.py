"""A new folder in the place of an old one: one of the two is there, whole.

Not every system can exchange two folders in one call: for the moment between two renames neither
has the name. Who is killed in it leaves the old one aside, and the next writer puts it back.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from cit_curate.storage.durable import TEMPORARY_PREFIX, atomic_folder


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `out`, instead of what is there, when all went well.

    The caller holds the lock of `out`, and has decided that what is there may go. What a killed
    writer left is removed first; an old folder that it had put aside is back in its place.
    """
    settle(out)
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    with _old_or_new(out), atomic_folder(out, aside=aside_path(out)) as folder:
        yield folder


def aside_path(out: Path) -> Path:
    """Where the old folder lies while a new one takes its place."""
    return out.with_name(f"{TEMPORARY_PREFIX}0-{out.name}")


@contextmanager
def _old_or_new(out: Path) -> Iterator[None]:
    """Afterwards the folder that was put aside is gone, or back if no new one came."""
    try:
        yield
    finally:
        if aside_path(out).exists():
            if out.exists():
                shutil.rmtree(aside_path(out))
            else:
                aside_path(out).rename(out)


def settle(out: Path) -> None:
    """Remove what killed writers left beside `out`, and put an old folder back in its place.

    Whoever holds the lock of `out` is the only living one.
    """
    for path in out.parent.glob(f"{TEMPORARY_PREFIX}*-{escape(out.name)}"):
        pid = path.name.removeprefix(TEMPORARY_PREFIX).removesuffix(f"-{out.name}")
        if pid == "0" and not out.exists():
            # Killed between the two renames: the old folder is still the one that counts.
            path.rename(out)
        elif pid.isdigit():
            shutil.rmtree(path)
