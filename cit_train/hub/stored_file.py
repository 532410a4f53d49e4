"""A file that was fetched, with a record of it beside it that every later use compares it with.

PATH         the file, whole
PATH.json    address, bytes, ETag, SHA-256
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.storage.durable import file_sha256, read_json, write_json

__all__ = ["StoredFile", "beside", "check_asked", "stored_file", "write_record"]


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that is whole, and where it came from.

    Attributes:
        path: Where it lies.
        url: Its address; "" for a file that was put there by hand.
        bytes: Its size.
        sha256: Hex SHA-256 of its bytes, taken when it was complete.
        etag: The server's tag of this version; "" when it gave none.
    """

    path: Path
    url: str
    bytes: int
    sha256: str
    etag: str


def stored_file(path: Path, *, sha256: str = "", url: str = "") -> StoredFile | None:
    """The file at `path` if it is there and still what it was; one put there by hand is recorded.

    Args:
        path: Of the file.
        sha256: What its bytes must hash to, in hex; "" = what was recorded.
        url: Where it should have come from; "" = anywhere.

    Raises:
        ConfigError: It is not what was asked for.
        DamagedError: It has changed, or came from another address.
    """
    if not path.is_file():
        return None
    found, size = file_sha256(path), path.stat().st_size
    record = beside(path, ".json")
    if not record.is_file():
        check_asked(path, found, sha256)
        stored = StoredFile(path=path, url="", bytes=size, sha256=found, etag="")
        write_record(stored)
        return stored
    value = read_json(record)
    if not isinstance(value, dict) or not value.keys() >= {"url", "sha256", "etag"}:
        raise DamagedError(f"{record} is damaged; delete it, and {path} is recorded anew")
    if found != str(value["sha256"]).lower():
        raise DamagedError(
            f"{path} has the SHA-256 {found}, and its record {record.name} says {value['sha256']}; "
            "delete it and fetch it again"
        )
    check_asked(path, found, sha256)
    if url and value["url"] not in ("", url):
        raise DamagedError(f"{path} came from {value['url']}, not from {url}; move it away")
    return StoredFile(
        path=path, url=str(value["url"]), bytes=size, sha256=found, etag=str(value["etag"])
    )


def write_record(stored: StoredFile) -> None:
    """Write the record of a file beside it."""
    record = asdict(stored)
    del record["path"]
    write_json(beside(stored.path, ".json"), record)


def check_asked(path: Path, found: str, asked: str) -> None:
    """Compare a file's SHA-256 with the one that was asked for; "" = any.

    Raises:
        ConfigError: They differ.
    """
    if asked and found != asked.lower():
        raise ConfigError(
            f"{path} has the SHA-256 {found}, and what was asked for is {asked.lower()}: it is "
            "another file, or the hash is mistyped; look where it came from, and run cit pull "
            "again with the right --sha256"
        )


def beside(path: Path, suffix: str) -> Path:
    """A file of the same name with a longer ending."""
    return path.with_name(path.name + suffix)
