"""A reader of curated datasets as counts, `{pair key: times used}`, that checks every entry.

The published form is one JSON object; `cit export` also writes Parquet and CSV. A file may have
many millions of entries, of which memory holds one batch.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.config import COUNT_SUFFIXES
from cit_curate.csv_cells import csv_text, guard_remover
from cit_curate.errors import BadInputError, ConfigError
from cit_curate.records import split_pair_key

BATCH_ENTRIES = 65_536
# The largest integer that every JSON reader holds exactly.
MAX_COUNT = 2**53 - 1
MAX_SHOWN = 80

ENTRY_SCHEMA = pa.schema(
    [("entry", pa.int64()), ("pair_key", pa.string()), ("count", pa.int64())],
)
REJECT_SCHEMA = pa.schema(
    [
        ("entry", pa.int64()),
        ("pair_key", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

Entry = tuple[str, object]
"""A key and its value, as in the file."""


class Nested:
    """A stand-in for a list or an object where a count should be."""

    def __repr__(self) -> str:
        return "a list or an object"


@dataclass(frozen=True)
class CountBatch:
    """Some consecutive entries of a file.

    Attributes:
        entries: The good entries, with `ENTRY_SCHEMA`; `entry` is the number in the file, from 1.
            Keys may repeat.
        rejects: The entries with a bad pair key or count, with `REJECT_SCHEMA`.
        num_bytes: The bytes of the file read so far.
    """

    entries: pa.Table
    rejects: pa.Table
    num_bytes: int

    @property
    def num_entries(self) -> int:
        """The number of entries, rejects included."""
        return len(self.entries) + len(self.rejects)


def read_counts(path: Path) -> Iterator[CountBatch]:
    """The entries of a file of counts, batch by batch.

    Args:
        path: The file: `.json` (one object), `.csv` or `.parquet` (columns pair_key and count).

    Raises:
        ConfigError: The file is missing, or has another suffix.
        BadInputError: The file as a whole cannot be read: it is no JSON object, is cut, or lacks a
            column. The message has the number of the last good entry.
    """
    readers: dict[str, Callable[[BinaryIO], Iterator[Entry]]] = {
        ".json": _json_entries,
        ".csv": _csv_entries,
        ".parquet": _parquet_entries,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} is no file of counts; one ends in {', '.join(COUNT_SUFFIXES)}")
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    with path.open("rb") as stream:
        yield from _batches(path, stream, reader(stream))


def _batches(path: Path, stream: BinaryIO, entries: Iterator[Entry]) -> Iterator[CountBatch]:
    num_read = 0
    while True:
        batch: list[Entry] = []
        try:
            batch.extend(islice(entries, BATCH_ENTRIES))
        except (
            *(ijson.JSONError, ValueError, csv.Error),
            *(pa.ArrowException, OSError, UnicodeDecodeError),
        ) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            where = f"after entry {num_read + len(batch):,}"
            last = f" ({shown(batch[-1][0])})" if batch else ""
            raise BadInputError(
                f"{path} cannot be read {where}{last}: {_one_line(error)}; it should be one JSON "
                'object {"00001234_tag": 3, …}, or a CSV or Parquet file with pair_key and count'
            ) from error
        if not batch:
            return
        yield _checked(batch, first=num_read + 1, num_bytes=stream.tell())
        num_read += len(batch)


@dataclass
class _Columns:
    """Columns that grow entry by entry."""

    entry: list[int] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    count: list[int] = field(default_factory=list)


def _checked(batch: Sequence[Entry], *, first: int, num_bytes: int) -> CountBatch:
    good = _Columns()
    rejects: list[dict[str, object]] = []
    for number, (key, count) in enumerate(batch, first):
        if type(count) is int and 0 < count <= MAX_COUNT and _is_pair_key(key):
            good.entry.append(number)
            good.key.append(key)
            good.count.append(count)
        else:
            rejects.append(_reject(number, key, count))
    return CountBatch(
        pa.table([good.entry, good.key, good.count], schema=ENTRY_SCHEMA),
        pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA),
        num_bytes,
    )


def _is_pair_key(key: object) -> bool:
    try:
        return isinstance(key, str) and split_pair_key(key)[0] != ""
    except ValueError:
        return False


def _reject(number: int, key: object, count: object) -> dict[str, object]:
    if _is_pair_key(key):
        reason = "bad_count"
        detail = f"the count is {shown(count)}; it is a whole number from 1 to 2^53 - 1"
    else:
        reason = "bad_key"
        detail = f"{shown(key)} is no pair key; one reads IMAGE-ID_TEXT-KEY, as in 00001234_tag"
    return {
        "entry": number,
        "pair_key": str(key)[:255],
        "reason": reason,
        "detail": f"entry {number}: {detail}",
    }


def shown(value: object) -> str:
    """A value of the file for a message: quoted and short."""
    text = repr(value[:MAX_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()[:40]) or type(error).__name__


def _json_entries(stream: BinaryIO) -> Iterator[Entry]:
    """The members of one JSON object; a nested value is skipped and not built."""
    if stream.read(3) != b"\xef\xbb\xbf":  # the byte order mark of some editors
        stream.seek(0)
    events = ijson.basic_parse(stream)
    if next(events)[0] != "start_map":
        raise ValueError("the file is no JSON object")
    key = ""
    depth = 0
    for event, value in events:
        if event in ("start_map", "start_array"):
            depth += 1
        elif event in ("end_map", "end_array"):
            depth -= 1
            if depth == 0:
                yield key, Nested()
        elif depth == 0 and event == "map_key":
            key = value
        elif depth == 0:
            yield key, value


def _csv_entries(stream: BinaryIO) -> Iterator[Entry]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    try:
        rows = csv.reader(text, strict=True)
        names = next(rows, [])
        key_column, count_column = _column(names, "pair_key"), _column(names, "count")
        remove_guards = guard_remover(names)
        for row in rows:
            if len(row) != len(names):
                raise ValueError(f"line {rows.line_num:,} has {len(row)} cells, not {len(names)}")
            if remove_guards is None:
                key = _without_quote(row[key_column])
            else:
                remove_guards(row)
                key = row[key_column]
            count = row[count_column]
            is_number = count.isascii() and count.isdigit() and len(count) < 20
            yield key, int(count) if is_number else count
    finally:
        text.detach()


def _without_quote(key: str) -> str:
    """The key without the `'` that older versions, whose files lack the column `guarded`, put."""
    return key[1:] if key.startswith("'") and csv_text(key[1:]) == key else key


def _parquet_entries(stream: BinaryIO) -> Iterator[Entry]:
    with pq.ParquetFile(stream, pre_buffer=False) as file:
        names = file.schema_arrow.names
        columns = [names[_column(names, name)] for name in ("pair_key", "count")]
        for batch in file.iter_batches(BATCH_ENTRIES, columns=columns):
            yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)


def _column(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise ValueError(f"it has no column {name}; it has {', '.join(names[:10]) or 'none'}")
    return list(names).index(name)
