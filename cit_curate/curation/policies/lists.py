"""Captions that a person has named: never to be kept, or always."""

import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.encodings import read_text
from cit_curate.errors import BadInputError, ConfigError, QueryError
from cit_curate.records import PAIR_COLUMNS, Bool
from cit_curate.run.one_select import check_select, short_message
from cit_curate.storage.sql import open_database

EXCLUDED = "excluded"
INCLUDED = "included"
# The columns that a table of a list may have, each enough by itself.
_COLUMNS = ("pair_key", "image_id")
_VIEW = "pairs"

Match = Callable[[pa.Table], Bool]
"""From the rows of a scanned batch to bool [batch], those that are named."""


def excluded(lists: Sequence[str]) -> Policy:
    """Leave out what the lists name.

    Args:
        lists: Files of keys, or SQL predicates, see `named_by`.

    Raises:
        BadInputError: A file has no keys.
        ConfigError: A list is neither a file nor a predicate that can be read.
    """
    matches = [named_by(each, flag="--exclude") for each in lists]

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        return decision.leave_out(_any(matches, candidates.batch.rows), EXCLUDED)

    return policy


def included(lists: Sequence[str]) -> Policy:
    """Keep what the lists name, whatever its similarity; errors as of `excluded`."""
    matches = [named_by(each, flag="--include") for each in lists]

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        return decision.keep(_any(matches, candidates.batch.rows), INCLUDED)

    return policy


@cache
def named_by(value: str, *, flag: str) -> Match:
    """What a list names.

    Args:
        value: A text file with a pair key or an image id on each line; a Parquet or CSV file with a
            column pair_key or image_id; or a SQL predicate over pair_key, image_id, text_key,
            caption, image_uri and source, as in `caption ILIKE '%logo%'`.
        flag: The flag, for messages.

    Raises:
        BadInputError: The file has no such column, or no key.
        ConfigError: The file does not exist, or the predicate does not parse.
    """
    path = Path(value)
    if path.suffix.lower() in (".txt", ".csv", ".parquet"):
        if not path.is_file():
            raise ConfigError(f"{flag}: there is no file {value}")
        return _in_file(path, flag)
    return _by_predicate(value, flag)


def _in_file(path: Path, flag: str) -> Match:
    pairs: set[str] = set()
    images: set[str] = set()
    if path.suffix.lower() == ".txt":
        pairs = {line.strip() for line in read_text(path).splitlines() if line.strip()}
        images = pairs
    else:
        table = _read_table(path)
        found = [name for name in _COLUMNS if name in table.column_names]
        if not found:
            raise BadInputError(
                f"{flag}: {path} has no column pair_key or image_id; it has "
                f"{', '.join(table.column_names)}"
            )
        keys = set(table[found[0]].cast(pa.string()).drop_null().to_pylist())
        pairs, images = (keys, set()) if found[0] == "pair_key" else (set(), keys)
    if not pairs and not images:
        raise BadInputError(f"{flag}: {path} names nothing")

    def match(rows: pa.Table) -> Bool:
        ids = rows["image_id"].to_pylist()
        return _in(_pair_keys(rows).to_pylist(), pairs) | _in(ids, images)

    return match


def _read_table(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pq.ParquetFile(path).read()
        as_text = pa_csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
        return pa_csv.read_csv(path, convert_options=as_text)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInputError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _by_predicate(predicate: str, flag: str) -> Match:
    connection = open_database(None, spill=Path(tempfile.gettempdir()), max_threads=1)
    connection.execute("SET enable_external_access = false")
    # Lanes that replace pairs at the same time share this connection.
    one_at_a_time = threading.Lock()

    def match(rows: pa.Table) -> Bool:
        named = rows.append_column("pair_key", _pair_keys(rows))
        with one_at_a_time:
            connection.register(_VIEW, named.select([*PAIR_COLUMNS, "pair_key"]))
            try:
                hits = connection.execute(select).fetchnumpy()["hit"]
            except duckdb.Error as error:
                raise ConfigError(f"{flag} {predicate!r}: {short_message(error)}") from None
        return np.asarray(hits, dtype=np.bool_)

    select = f"SELECT coalesce(({predicate}), false)::BOOLEAN AS hit FROM {_VIEW}"  # noqa: S608 - checked below
    try:
        check_select(connection, select, [_VIEW])
    except QueryError as error:
        raise ConfigError(
            f"{flag} {predicate!r} is neither a file (.txt, .csv, .parquet) nor a predicate over "
            f"the columns of a pair, such as caption ILIKE '%logo%': {error}"
        ) from None
    match(_no_rows())
    return match


def _no_rows() -> pa.Table:
    return pa.table({name: pa.array([], pa.string()) for name in PAIR_COLUMNS})


def _pair_keys(rows: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(rows["image_id"], rows["text_key"], "_")


def _in(keys: Sequence[str], known: Collection[str]) -> Bool:
    return np.fromiter((key in known for key in keys), np.bool_, len(keys))


def _any(matches: Sequence[Match], rows: pa.Table) -> Bool:
    named = np.zeros(len(rows), dtype=np.bool_)
    for match in matches:
        named |= match(rows)
    return named
