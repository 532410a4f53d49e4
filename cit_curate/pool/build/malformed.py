"""Counting malformed records: how many a source may have, in total and in a row."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.errors import BadInputError
from cit_curate.pool.format import REJECT_SCHEMA
from cit_curate.reject_limit import RejectLimit
from cit_curate.sources.rows import Reject
from cit_curate.storage.durable import atomic_file, sweep_temporary

MAX_IN_A_ROW = RejectLimit.max_in_a_row


@dataclass(frozen=True)
class Counted:
    """Malformed records so far, one of several lines as often, and the latest run of them."""

    num_malformed: int = 0
    num_records: int = 0
    last_record: int = -2
    in_a_row: int = 0


def check_limit(
    malformed: int, records: int, max_reject_ratio: float, top_reasons: Callable[[], str]
) -> None:
    """Raise when too many records were malformed.

    Raises:
        BadInputError: Their share is above `max_reject_ratio`.
    """
    if RejectLimit(max_ratio=max_reject_ratio).is_exceeded(malformed, num_seen=records):
        raise BadInputError(
            f"{malformed:,} of {records:,} rows are malformed, more than --max-reject-ratio "
            f"{max_reject_ratio}{top_reasons()}; mend the source or raise the limit"
        )


def count_malformed(
    counted: Counted,
    rejects: Sequence[Reject],
    num_records: int,
    path: Path,
    top_reasons: Callable[[], str] = lambda: "",
) -> Counted:
    """The count after the next `num_records` records, which have these rejects.

    `top_reasons` is for the message, and includes these rejects already.

    Raises:
        BadInputError: There were `MAX_IN_A_ROW` malformed ones in a row.
    """
    num, last, in_a_row = counted.num_malformed, counted.last_record, counted.in_a_row
    for reject in rejects:
        if reject.is_malformed:
            in_a_row = in_a_row + 1 if reject.record == last + 1 else 1
            num, last = num + reject.num_lines, reject.record
            if in_a_row == MAX_IN_A_ROW:
                raise BadInputError(
                    f"{path}: {MAX_IN_A_ROW} malformed rows in a row up to row "
                    f"{reject.row}; the last: {reject.reason}, {reject.detail}{top_reasons()}"
                )
    return Counted(num, counted.num_records + num_records, last, in_a_row)


@contextmanager
def keeping_rejects(path: Path, rejects: Callable[[], Generator[pa.Table]]) -> Iterator[None]:
    """Write the rejects so far to `path` if the block fails because of its input.

    Args:
        path: A Parquet file of `REJECT_SCHEMA`; an old one is replaced.
        rejects: The rejects; the generator is closed afterwards.

    Raises:
        BadInputError: The block's error; it names the file, unless nothing was rejected.
    """
    try:
        yield
    except BadInputError as error:
        with closing(rejects()) as rejected:
            tables = (table.cast(REJECT_SCHEMA) for table in rejected if table.num_rows)
            first = next(tables, None)
            if first is None:
                raise
            sweep_temporary(path.parent, below=False, name=path.name)
            with (
                atomic_file(path) as temporary,
                pq.ParquetWriter(
                    temporary, REJECT_SCHEMA, compression="zstd", version="2.6"
                ) as writer,
            ):
                for table in chain([first], tables):
                    writer.write_table(table)
        raise BadInputError(f"{error}; the rejected rows are listed in {path}") from error
