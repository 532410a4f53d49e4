"""Sources in a store: fetched into the cache, then read like local files."""

from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from cit_curate.errors import ConfigError
from cit_curate.storage.remote import RemoteFile, list_files, remote_url, stat_file
from cit_curate.storage.remote_cache import hold, local_copy

_IN_FOLDERS = (".tar", ".parquet")


def remote_files(url: str) -> list[RemoteFile]:
    """The files of a URL: a single file, those of a brace pattern, or a folder's tars or Parquet.

    Raises:
        ConfigError: A file or the folder does not exist, or the folder has no tar or Parquet file.
        ResourceError: The network stays unavailable.
    """
    if "{" in url:
        return [_file(str(text)) for text in braceexpand(url)]
    single = stat_file(url)
    if single is not None:
        return [single]
    listed = {name: file for name, file in list_files(url).items() if "/" not in name}
    if not listed:
        raise ConfigError(f"the source {url} does not exist")
    for suffix in _IN_FOLDERS:
        if shards := [file for name, file in sorted(listed.items()) if name.endswith(suffix)]:
            return shards
    raise ConfigError(
        f"{url} holds no .tar and no .parquet file; name the files, or copy a folder of images to "
        "a disk and build the pool there (--image-root URL says where they lie)"
    )


def held_copies(urls: Sequence[str], folder: Path) -> list[tuple[RemoteFile, Path]]:
    """The files of some URLs and their local copies, which last for as long as `folder` exists.

    Raises:
        ConfigError: As in `remote_files`.
        ResourceError: The network stays unavailable.
    """
    copies: list[tuple[RemoteFile, Path]] = []
    for url in urls:
        for file in remote_files(url):
            link = folder / f"{len(copies):06d}" / file.url.rpartition("/")[2]
            hold(local_copy(file), link)
            copies.append((file, link))
    return copies


def _file(url: str) -> RemoteFile:
    normal = remote_url(url)
    file = stat_file(normal) if normal is not None else None
    if file is None:
        raise ConfigError(f"the source {url} does not exist")
    return file
