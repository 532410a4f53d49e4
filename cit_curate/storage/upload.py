"""Output into an object store: first written in full on a local disk, then uploaded."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cit_curate.errors import ConfigError
from cit_curate.storage.durable import sums_path
from cit_curate.storage.remote import list_files, put_file, remote_url, shown_url, stat_file

Progress = Callable[[int, int], None]
"""Called with the bytes uploaded so far and the total."""


@contextmanager
def made_here(
    out: Path, *, last: str = "", progress: Progress = lambda done, total: None
) -> Iterator[Path]:
    """Yield a local path to write to; the output goes to `out` when the block succeeds.

    For a local `out`, that is `out` itself, and nothing is copied.

    Args:
        out: A local path, or the URL of a file or of an empty folder.
        last: In a folder, the file to upload after all others.
        progress: Called as the upload advances.

    Raises:
        ConfigError: The URL cannot be written, or is a folder that is not empty.
        ResourceError: The network failed at every try.
    """
    url = remote_url(out)
    if url is None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="cit-upload-") as folder:
        local = Path(folder) / out.name
        yield local
        if local.is_dir():
            upload_folder(local, url, last=last, progress=progress)
        else:
            put_file(local, url)
            if sums_path(local).is_file():
                put_file(sums_path(local), f"{url}.sha256")
            progress(1, 1)


def check_empty(url: str) -> None:
    """Make sure that a folder of a store is empty.

    Raises:
        ConfigError: It has files in it, or is itself a file.
    """
    if stat_file(url) is not None:
        raise ConfigError(f"{shown_url(url)} is a file; choose another path")
    if files := list_files(url):
        raise ConfigError(
            f"{shown_url(url)} has {len(files):,} files in it, such as {min(files)}; choose an "
            "empty folder, or remove them with the store's own tools"
        )


def upload_folder(
    folder: Path, url: str, *, last: str = "", progress: Progress = lambda done, total: None
) -> None:
    """Upload a finished folder into an empty one of a store; the size of each file is checked.

    Args:
        folder: A local folder.
        url: An empty folder of the store.
        last: The file to upload after all others, which marks the folder as complete for its
            readers; empty: the last one by name.
        progress: Called after each file.

    Raises:
        ConfigError: The folder is not empty, or cannot be written.
        ResourceError: The network failed at every try; the files uploaded so far stay, without the
            last one.
    """
    check_empty(url)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.relative_to(folder).as_posix() == last)
    total, done = sum(path.stat().st_size for path in files), 0
    for path in files:
        put_file(path, f"{url}/{path.relative_to(folder).as_posix()}")
        done += path.stat().st_size
        progress(done, total)
