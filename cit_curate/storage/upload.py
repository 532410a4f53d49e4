"""Putting finished files and folders into a store: made on a disk first, whole, then copied."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cit_curate.errors import ConfigError
from cit_curate.storage.durable import sums_path
from cit_curate.storage.remote import list_files, put_file, remote_url, shown_url, stat_file

Progress = Callable[[int, int], None]
"""Called with the bytes that are in the store and all bytes."""


@contextmanager
def made_here(
    place: Path, *, last: str = "", progress: Progress = lambda done, total: None
) -> Iterator[Path]:
    """Give the local path to write to; what was written goes to `place` when the block ends well.

    A local `place` is given itself, and nothing is copied.

    Args:
        place: A local path, or a URL (of a file, or of a folder that is empty).
        last: Of a folder, the file that comes when all others are there.
        progress: Told how far the upload is.

    Raises:
        ConfigError: The URL cannot be written, or is a folder with something in it.
        ResourceError: The network stays away.
    """
    url = remote_url(place)
    if url is None:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="cit-upload-") as folder:
        local = Path(folder) / place.name
        yield local
        if local.is_dir():
            upload_folder(local, url, last=last, progress=progress)
        else:
            put_file(local, url)
            if sums_path(local).is_file():
                put_file(sums_path(local), f"{url}.sha256")
            progress(1, 1)


def check_empty(url: str) -> None:
    """Make sure that a folder of a store has nothing in it.

    Raises:
        ConfigError: It has, or it is a file.
    """
    if stat_file(url) is not None:
        raise ConfigError(f"{shown_url(url)} is a file; choose another place")
    if files := list_files(url):
        raise ConfigError(
            f"{shown_url(url)} has {len(files):,} files in it, such as {min(files)}; choose an "
            "empty place, or remove them with the store's own tools"
        )


def upload_folder(
    folder: Path, url: str, *, last: str = "", progress: Progress = lambda done, total: None
) -> None:
    """Copy a finished folder into an empty place of a store, each file checked by its size.

    Args:
        folder: What to copy.
        url: Where to; nothing is there.
        last: The file that comes when all others are there, as a sign that they are: without it
            no reader takes the folder for whole. Left out, the last one by name.
        progress: Told how far the upload is.

    Raises:
        ConfigError: Something is there, or it cannot be written.
        ResourceError: The network stays away; what was copied stays, without the last file.
    """
    check_empty(url)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.relative_to(folder).as_posix() == last)
    total, done = sum(path.stat().st_size for path in files), 0
    for path in files:
        put_file(path, f"{url}/{path.relative_to(folder).as_posix()}")
        done += path.stat().st_size
        progress(done, total)
