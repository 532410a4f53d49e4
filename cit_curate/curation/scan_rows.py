"""The rows of scored captions, and the totals that a scan counts over them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.curation.moments import Moments
from cit_curate.curation.scores.audit import Audit
from cit_curate.curation.selection import KEEP_RATIO
from cit_curate.records import CaptionBatch, Float32, Int64, PoolCursor
from cit_curate.run.ledger_tables import HISTOGRAM_BINS

_TEXTS = ("pair_key", "image_id", "text_key", "caption", "image_uri", "source")
SCORED_SCHEMA = pa.schema(
    [
        ("scan_position", pa.int64()),
        *((name, pa.string()) for name in _TEXTS),
        ("similarity", pa.float32()),
        ("metadata_id", pa.int32()),
        ("metadata_text", pa.string()),
        ("reason", pa.string()),
        ("pool", pa.string()),
    ]
)


@dataclass(frozen=True)
class ScoredBatch:
    """One scan batch after the rule.

    Attributes:
        pools: The pool of each of its captions, rejects left out.
        similarity: float32 [scored]; None = nothing was scored.
        kept: The rows that are kept.
        missed: The scored rows that are not.
        cursor: The position of the scan after this batch.
        rejects: The captions without a usable vector, as rows of the ledger's `rejects`.
        first: float32 [scored], the similarity under the first encoder; None = not asked for.
    """

    pools: pa.ChunkedArray
    similarity: Float32 | None
    kept: pa.Table
    missed: pa.Table
    cursor: PoolCursor
    rejects: Sequence[Mapping[str, Any]] = ()
    first: Float32 | None = None


@dataclass
class ScanTotals:
    """The totals of one lane's scan in one outer step; its scan owns and changes them.

    `lowest_kept` is the lowest similarity that `keep_ratio` has kept.
    """

    scanned: int = 0
    kept: int = 0
    best_similarity: float = -1.0
    histogram: Int64 = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS, dtype=np.int64))
    scanned_of_pool: Counter[str] = field(default_factory=Counter)
    kept_of_pool: Counter[str] = field(default_factory=Counter)
    read_seconds: float = 0.0
    embed_seconds: float = 0.0
    search_seconds: float = 0.0
    audit: Audit | None = None
    kept_of_entry: Counter[int] = field(default_factory=Counter)
    kept_of_reason: Counter[str] = field(default_factory=Counter)
    lowest_kept: float = 1.0
    moments: Moments = field(default_factory=Moments)

    def add(self, batch: ScoredBatch) -> None:
        """Count a scanned batch."""
        self.scanned += len(batch.rejects) + len(batch.pools)
        self.scanned_of_pool += Counter(row["pool"] for row in batch.rejects if row["pool"])
        self.scanned_of_pool += count_values(batch.pools)
        self.add_kept(batch.kept)
        if batch.similarity is not None and batch.first is not None:
            self.moments = self.moments.with_batch(batch.similarity, batch.first)
        if batch.similarity is not None:
            best = float(batch.similarity.max(initial=-1.0))
            self.best_similarity = max(self.best_similarity, best)
            clipped = np.clip(batch.similarity, -1, 1)
            self.histogram += np.histogram(clipped, bins=HISTOGRAM_BINS, range=(-1, 1))[0]

    def add_kept(self, rows: pa.Table) -> None:
        """Count kept rows."""
        self.kept += len(rows)
        self.kept_of_pool += count_values(rows["pool"])
        self.kept_of_entry += count_values(rows["metadata_id"])
        reasons = count_values(rows["reason"])
        self.kept_of_reason += reasons
        if reasons[KEEP_RATIO]:
            best = rows.filter(pc.equal(rows["reason"], KEEP_RATIO))["similarity"]
            self.lowest_kept = min(self.lowest_kept, pc.min(best).as_py())


def scored_rows(
    batch: CaptionBatch,
    similarity: Float32 | None,
    nearest: Int64 | None,
    reason: pa.Array,
    entry_names: pa.Array,
) -> pa.Table:
    """The rows of a batch with `SCORED_SCHEMA`.

    Args:
        batch: The captions.
        similarity: float32 [batch]; None = not scored.
        nearest: int64 [batch], the nearest entry; None = not scored.
        reason: string [batch], why each is kept, or why not.
        entry_names: string [entries].
    """
    rows = batch.rows
    keys = pc.binary_join_element_wise(rows["image_id"], rows["text_key"], "_")
    ids = pa.nulls(len(rows), pa.int32()) if nearest is None else pa.array(nearest, pa.int32())
    columns = {
        "scan_position": pa.array(batch.scan_position),
        "pair_key": keys,
        "image_id": rows["image_id"],
        "text_key": rows["text_key"],
        "caption": rows["caption"],
        "image_uri": rows["image_uri"],
        "source": rows["source"],
        "similarity": pa.nulls(len(rows), pa.float32()) if similarity is None else similarity,
        "metadata_id": ids,
        "metadata_text": entry_names.take(ids),
        "reason": reason,
        "pool": pool_names(batch),
    }
    return pa.table(columns).cast(SCORED_SCHEMA)


def pool_names(batch: CaptionBatch) -> pa.ChunkedArray:
    """The pool of each caption; null where pools have no names."""
    if "pool" in batch.rows.column_names:
        return batch.rows["pool"]
    return pa.chunked_array([pa.nulls(len(batch), pa.string())])


def count_values(column: pa.ChunkedArray) -> Counter[Any]:
    """The number of rows of each value; nulls are not counted."""
    counts = column.drop_null().value_counts()
    values = counts.field("values").to_pylist()
    return Counter(dict(zip(values, counts.field("counts").to_pylist(), strict=True)))
