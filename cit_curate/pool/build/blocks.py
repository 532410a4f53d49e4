"""Reading sources in pieces that any process may do: each block of pairs is a small file.

A block is some consecutive records of one source: its pairs and its rejects. `read_stripe` writes
every `num_stripes`-th block of a source, whole or not at all. A source that is the only work of
several workers is read by each of them, and each makes its own blocks: reading is a fifth of the
work, and only the reader knows where a record of a quoted table starts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from cit_curate.captions import cleaner
from cit_curate.config import Cleaning
from cit_curate.errors import BadInputError, DamagedError
from cit_curate.pool.build.malformed import Counted, count_malformed
from cit_curate.pool.build.place import keep_in_staging
from cit_curate.pool.format import SourceEntry
from cit_curate.sources.columns import Columns
from cit_curate.sources.rows import RawPairs, Reject, pairs_of
from cit_curate.sources.source import Source, open_source
from cit_curate.storage.durable import (
    append_sha256,
    atomic_file,
    read_json,
    read_with_sha256,
    write_sealed,
)

# Batches of a reader, of at most 8,192 records, in a block.
BLOCK_BATCHES = 8
# A worker is worth its start, and reading one source twice, from so many bytes of source on.
# Measured on 2 busy cores: two workers are no faster than one on a CSV of 79 MB.
BYTES_PER_WORKER = 64 << 20
STAGING_VERSION = 3

# Formats whose pairs cost several times what their reading does.
_STRIPED = ("csv", "tsv", "jsonl", "parquet")
_RECORDS, _REJECTS = b"num_records", b"rejects"


@dataclass(frozen=True)
class StripeTask:
    """The blocks `stripe`, `stripe` + `num_stripes` and so on of one source, to be in `folder`."""

    folder: Path
    source: Source
    columns: Columns
    clean: Cleaning
    stripe: int
    num_stripes: int


def read_stripe(task: StripeTask) -> None:
    """Write the blocks of a stripe that are not there yet.

    After `malformed.MAX_IN_A_ROW` malformed records in a row the rest is left alone: the build ends
    when it comes to them.

    Raises:
        ConfigError: See `open_source`.
        DamagedError: The source is damaged.
    """
    if _is_done(task):
        return
    task.folder.mkdir(parents=True, exist_ok=True)
    source, clean = task.source, cleaner(task.clean)
    reader = open_source(source, task.columns)
    batches, number = reader.read(), 0
    while block := list(islice(batches, BLOCK_BATCHES)):
        path = _block_path(task.folder, number)
        if number % task.num_stripes == task.stripe and not path.is_file():
            root = source.image_root
            pairs = [
                pairs_of(rows, reader.columns, source=source.name, image_root=root, clean=clean)
                for rows in block
            ]
            _write_block(path, pairs)
            rejects = [reject for each in pairs for reject in each.rejects]
            try:
                count_malformed(Counted(), rejects, 0, source.path)
            except BadInputError:
                return
        number += 1
    if task.stripe == 0:
        write_sealed(task.folder / "end.json", {"num_blocks": number})


def read_blocks(folder: Path) -> Iterator[RawPairs]:
    """The blocks of a source in order, once every stripe of it has been read.

    Raises:
        DamagedError: A block is missing or cut.
    """
    # Without an end, some block has too many malformed records in a row, and who reads it stops.
    num_blocks = _num_blocks(folder) if (folder / "end.json").is_file() else None
    number = 0
    while number != num_blocks:
        yield _read_block(_block_path(folder, number))
        number += 1


def open_staging(
    staging: Path,
    sources: Sequence[Source],
    entries: Sequence[SourceEntry],
    settings: Mapping[str, object],
) -> list[Path]:
    """The folder of blocks for each source; those of other sources or settings are removed.

    Args:
        staging: A folder beside the pool.
        sources: What is read.
        entries: The sources as they are now.
        settings: What else blocks depend on, by the names that a person knows: JSON values.
    """
    version = {"staging version": [STAGING_VERSION, BLOCK_BATCHES]}
    keys = [{**version, "entry": asdict(entry), **settings} for entry in entries]
    digests = [hashlib.sha256(json.dumps(key, sort_keys=True).encode()) for key in keys]
    folders = [staging / digest.hexdigest()[:32] for digest in digests]
    described = {f"the source {entry.path}": asdict(entry) for entry in entries}
    keep_in_staging(staging, folders, {**version, **described, **settings})
    return folders


def stripe_tasks(
    folder: Path,
    source: Source,
    entry: SourceEntry,
    columns: Columns,
    clean: Cleaning,
    *,
    num_workers: int,
) -> list[StripeTask]:
    """The tasks that read one source with so many workers to spare for it."""
    most = max(entry.bytes // BYTES_PER_WORKER, 1) if source.format in _STRIPED else 1
    num_stripes = max(min(num_workers, most), 1)
    return [
        StripeTask(folder, source, columns, clean, stripe, num_stripes)
        for stripe in range(num_stripes)
    ]


def _is_done(task: StripeTask) -> bool:
    try:
        num_blocks = _num_blocks(task.folder)
    except DamagedError:
        return False
    numbers = range(task.stripe, num_blocks, task.num_stripes)
    return all(_block_path(task.folder, number).is_file() for number in numbers)


def _num_blocks(folder: Path) -> int:
    path = folder / "end.json"
    value = read_json(path)
    if value.keys() != {"num_blocks"}:
        raise DamagedError(f"{path} is damaged; remove {folder.parent} and build again")
    return int(value["num_blocks"])


def _block_path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:06d}.arrows"


def _write_block(path: Path, parts: Sequence[RawPairs]) -> None:
    table = pa.concat_tables([part.pairs for part in parts])
    rejects = [asdict(reject) for part in parts for reject in part.rejects]
    described: Mapping[bytes, bytes] = {
        _RECORDS: str(sum(part.num_records for part in parts)).encode(),
        _REJECTS: json.dumps(rejects).encode(),
    }
    table = table.replace_schema_metadata(described)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with atomic_file(path) as temporary:
        with (
            pa.OSFile(str(temporary), "wb") as stream,
            pa.ipc.new_stream(stream, table.schema, options=options) as writer,
        ):
            writer.write_table(table)
        append_sha256(temporary)


def _read_block(path: Path) -> RawPairs:
    try:
        with pa.ipc.open_stream(read_with_sha256(path)) as reader:
            table = reader.read_all()
        described = table.schema.metadata
        rejects = [Reject(**value) for value in json.loads(described[_REJECTS])]
        return RawPairs(int(described[_RECORDS]), table.replace_schema_metadata(None), rejects)
    except (DamagedError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{path} cannot be read: {error}; remove {path.parent.parent} and build again"
        ) from error
