"""A fetched file, with a record beside it that every later use checks it against.

PATH         the complete file
PATH.json    address, bytes, ETag, SHA-256
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.storage.durable import file_sha256, read_json, write_json

__all__ = ["StoredFile", "beside", "check_sha256", "stored_file", "write_record"]


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A complete file and its origin.

    Attributes:
        path: The path of the file.
        url: The address that it came from; "" = placed by hand.
        bytes: The size of the file.
        sha256: The SHA-256 of the complete file, in hex.
        etag: The server's tag of this version; "" = none.
    """

    path: Path
    url: str
    bytes: int
    sha256: str
    etag: str


def stored_file(path: Path, *, sha256: str = "", url: str = "") -> StoredFile | None:
    """The file at `path`, checked against its record; None = no file.

    A file without a record counts as placed by hand and is recorded.

    Args:
        path: The path of the file.
        sha256: The SHA-256 that it must have, in hex; "" = the recorded one.
        url: The address that it must have come from; "" = any.

    Raises:
        ConfigError: It does not have the requested SHA-256.
        DamagedError: It has changed, or came from another address.
    """
    if not path.is_file():
        return None
    actual, size = file_sha256(path), path.stat().st_size
    record = beside(path, ".json")
    if not record.is_file():
        check_sha256(path, actual, sha256)
        stored = StoredFile(path=path, url="", bytes=size, sha256=actual, etag="")
        write_record(stored)
        return stored
    value = read_json(record)
    if not isinstance(value, dict) or not value.keys() >= {"url", "sha256", "etag"}:
        raise DamagedError(f"{record} is damaged; delete it, and the file is recorded again")
    if actual != str(value["sha256"]).lower():
        raise DamagedError(
            f"{path} has the SHA-256 {actual}, but its record {record.name} has "
            f"{value['sha256']}; delete the file and fetch it again"
        )
    check_sha256(path, actual, sha256)
    if url and value["url"] not in ("", url):
        raise DamagedError(f"{path} came from {value['url']}, not from {url}; move it away")
    return StoredFile(
        path=path, url=str(value["url"]), bytes=size, sha256=actual, etag=str(value["etag"])
    )


def write_record(stored: StoredFile) -> None:
    """Write the record of a file beside it."""
    record = asdict(stored)
    del record["path"]
    write_json(beside(stored.path, ".json"), record)


def check_sha256(path: Path, actual: str, expected: str) -> None:
    """Compare a file's SHA-256 with the expected one; "" = any.

    Raises:
        ConfigError: They differ.
    """
    if expected and actual != expected.lower():
        raise ConfigError(
            f"{path} has the SHA-256 {actual}, but {expected.lower()} was requested: it is "
            "another file, or the hash is mistyped; check where it came from, and run cit pull "
            "again with the right --sha256"
        )


def beside(path: Path, suffix: str) -> Path:
    """The path with a suffix appended to its name."""
    return path.with_name(path.name + suffix)
