"""The tables of the ledger: their columns, and their rows to and from Parquet files."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cit_curate.storage.durable import atomic_file

LedgerTable = Literal["selections", "near_misses", "rounds", "used", "rejects"]
LEDGER_TABLES: tuple[LedgerTable, ...] = (
    "selections",
    "near_misses",
    "rounds",
    "used",
    "rejects",
)

_SCANNED = [
    ("outer_step", pa.int64()),
    ("lane", pa.int32()),
    ("scan_position", pa.int64()),
    ("pair_key", pa.string()),
    ("image_id", pa.string()),
    ("text_key", pa.string()),
    ("similarity", pa.float32()),
    ("metadata_id", pa.int32()),
    ("metadata_text", pa.string()),
]

# The counts of one pool in `rounds`; over all pools of a row they add up to the row's own counts.
POOL_COUNTS = pa.struct(
    [
        ("pool", pa.string()),
        ("scanned", pa.int64()),
        ("kept", pa.int64()),
        ("selected", pa.int64()),
    ]
)

# The share of what exact curation keeps that a cascade kept, by reason: an estimate, and its 95 %
# interval. `missed` is an estimate too.
RECALL = pa.struct(
    [
        ("reason", pa.string()),
        ("kept", pa.int64()),
        ("missed", pa.float64()),
        ("estimate", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)

# Columns of newer versions (`pool`, `pools`, `skipped`, …) come last; files without them are read
# with nulls.
SCHEMAS: Mapping[LedgerTable, pa.Schema] = {
    # The selected pairs, in arrival order. `reason`: threshold, min_ratio, everything, a policy, or
    # imported (with unknown similarity, metadata and encoder).
    "selections": pa.schema(
        [*_SCANNED, ("reason", pa.string()), ("encoder", pa.string()), ("pool", pa.string())]
    ),
    # The best pairs that were not kept, per metadata entry, best first. `reason`: the rule or the
    # policy that did not keep it.
    "near_misses": pa.schema(
        [*_SCANNED, ("encoder", pa.string()), ("pool", pa.string()), ("reason", pa.string())]
    ),
    # One row: the totals of a scan. With keep_ratio, `threshold` is the lowest similarity kept. Its
    # seconds are in metrics.jsonl, so that the ledger of the same run is the same bytes.
    "rounds": pa.schema(
        [
            ("outer_step", pa.int64()),
            ("lane", pa.int32()),
            ("update", pa.int64()),
            ("scanned", pa.int64()),
            ("kept", pa.int64()),
            ("selected", pa.int64()),
            ("threshold", pa.float64()),
            ("min_ratio", pa.float64()),
            ("best_similarity", pa.float32()),
            ("pool_passes", pa.float64()),
            ("histogram", pa.list_(pa.int64())),
            # The same counts by pool, in the order of the mixture.
            ("pools", pa.list_(POOL_COUNTS)),
            # For a cascade: captions that were not scored, and those scored by chance alone.
            ("skipped", pa.int64()),
            ("audited", pa.int64()),
            ("recalls", pa.list_(RECALL)),
        ]
    ),
    # The pairs that the weights have seen, in updates `first_update` to `last_update`, inclusive;
    # both are null in a run that was imported from counts.
    "used": pa.schema(
        [
            ("outer_step", pa.int64()),
            ("lane", pa.int32()),
            ("pair_key", pa.string()),
            ("times_used", pa.int64()),
            ("first_update", pa.int64()),
            ("last_update", pa.int64()),
            ("pool", pa.string()),
        ]
    ),
    # Kept pairs whose image could not be opened, and captions without a usable vector.
    "rejects": pa.schema(
        [
            ("outer_step", pa.int64()),
            ("lane", pa.int32()),
            ("scan_position", pa.int64()),
            ("pair_key", pa.string()),
            ("image_uri", pa.string()),
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("pool", pa.string()),
            ("source", pa.string()),
        ]
    ),
}

# `rounds.histogram`: counts of similarities in bins of 0.01 from -1 to 1.
HISTOGRAM_BINS = 200

# Rows of a row group in a ledger file.
ROW_GROUP_ROWS = 131_072


def write_rows(path: Path, table: LedgerTable, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a ledger file, whole or not at all; its bytes do not depend on the batches.

    Returns:
        The number of rows.
    """
    schema = SCHEMAS[table]
    rows = num_waiting = 0
    waiting = [schema.empty_table()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for batch in batches:
            waiting.append(pa.Table.from_batches([batch]).cast(schema))
            rows += len(batch)
            num_waiting += len(batch)
            # Joined once a row group: a scan of ten million captions has 5,000 small batches.
            if num_waiting >= ROW_GROUP_ROWS:
                joined = pa.concat_tables(waiting)
                while len(joined) >= ROW_GROUP_ROWS:
                    writer.write_table(joined.slice(0, ROW_GROUP_ROWS).combine_chunks())
                    joined = joined.slice(ROW_GROUP_ROWS)
                waiting, num_waiting = [joined], len(joined)
        writer.write_table(pa.concat_tables(waiting).combine_chunks())
    return rows


def as_now(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows of a ledger file with all columns of today, null where the file lacks one."""
    for name in schema.names:
        if name not in rows.schema.names:
            rows = rows.append_column(name, pa.nulls(len(rows), schema.field(name).type))
    return rows.select(schema.names)
