"""Captions whose vector is NaN, infinite or zero: rejects, one by one, up to a limit.

A text tower returns such vectors for a rare token that has overflowed, or for every caption once
training has diverged. The similarity of these captions is NaN until the scan leaves them out. Where
every vector is sound, no single caption is looked at.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cit_curate.errors import BrokenVectorsError, NotFiniteError
from cit_curate.records import Bool, CaptionBatch, Float32, Int64, PoolCursor, pair_key
from cit_curate.reject_limit import LANE_LIMIT
from cit_curate.text_encoder.embedder import Embedder
from cit_curate.text_encoder.texts import Texts
from indexes.protocol import MetadataIndex, Queries

REASON = "broken_vector"
_SHOWN_CHARS = 80

Rejects = Mapping[PoolCursor, Sequence[Mapping[str, Any]]]
"""The rejects of each batch, as rows of the ledger's `rejects`, by the cursor after the batch."""

logger = logging.getLogger(__name__)


def embed_captions(encoder: Embedder, texts: Texts) -> tuple[Queries, Bool | None]:
    """Embed captions, of which some may have no usable vector.

    Returns:
        float32 [texts, dim], unit norm, on the encoder's device, with an arbitrary vector where
        there is no usable one; and bool [texts], those texts, None = there are none.
    """
    try:
        return encoder.embed_on_device(texts), None
    except BrokenVectorsError as error:
        vectors = error.vectors.copy()
        vectors[error.broken] = np.eye(1, vectors.shape[1], dtype=np.float32)
        return vectors, error.broken


def mark_broken(similarity: Float32, broken: Bool | None) -> Float32:
    """The similarities, with NaN where a text has no usable vector."""
    return similarity if broken is None else np.where(broken, np.float32(np.nan), similarity)


def best_entries(encoder: Embedder, index: MetadataIndex, texts: Texts) -> tuple[Float32, Int64]:
    """The best similarity and nearest entry: float32 and int64 [texts]; NaN as in `mark_broken`."""
    vectors, broken = embed_captions(encoder, texts)
    result = index.search(vectors)
    return mark_broken(result.similarity[:, 0], broken), result.ids[:, 0]


def leave_out_broken(
    window: Sequence[CaptionBatch], sound: Bool
) -> tuple[list[CaptionBatch], Rejects]:
    """The batches of a window without some captions, and those captions as rejects.

    Args:
        window: Consecutive batches.
        sound: bool [window], the captions that stay.
    """
    kept, rejects = [], {}
    start = 0
    for batch in window:
        stays = sound[start : start + len(batch)]
        start += len(batch)
        kept.append(
            replace(
                batch,
                rows=batch.rows.filter(stays),
                pass_index=batch.pass_index[stays],
                position=batch.position[stays],
                scan_position=batch.scan_position[stays],
            )
        )
        positions = batch.scan_position[~stays].tolist()
        rows = batch.rows.filter(~stays).to_pylist()
        rejects[batch.cursor] = list(map(_reject, positions, rows))
    return kept, rejects


def check_limit(rejects: Rejects, *, before: Sequence[Mapping[str, Any]], num_scanned: int) -> None:
    """Warn about the rejects of a window, or raise when there are too many.

    Args:
        rejects: The rejects of this window.
        before: The rejects before it, in scan order.
        num_scanned: The captions scanned, those of this window included.

    Raises:
        NotFiniteError: The rejects exceed the limit, or are all captions scanned.
    """
    rows = [row for batch in rejects.values() for row in batch]
    num_broken = len(before) + len(rows)
    in_a_row = _longest_run([row["scan_position"] for row in (*before, *rows)])
    message = (
        f"{num_broken:,} of {num_scanned:,} captions ({in_a_row:,} in a row) have a vector that is "
        f"NaN, infinite or zero, such as {rows[0]['pair_key']} ({rows[0]['detail']})"
    )
    is_over = LANE_LIMIT.is_exceeded(num_broken, num_seen=num_scanned, in_a_row=in_a_row)
    if is_over or num_broken == num_scanned:
        raise NotFiniteError(
            f"{message}. The text tower is broken or has diverged: check --text-encoder, or lower "
            "--lr and start from an earlier checkpoint",
            [row["pair_key"] for row in (*before, *rows)],
        )
    logger.warning("%s; they are set aside in rejects", message)


def _longest_run(positions: Sequence[int]) -> int:
    """The length of the longest run of consecutive positions; they ascend."""
    starts = np.flatnonzero(np.diff(positions, prepend=-2) > 1)
    return int(np.diff(starts, append=len(positions)).max())


def _reject(scan_position: int, row: Mapping[str, Any]) -> dict[str, Any]:
    caption = row["caption"]
    shown = caption if len(caption) <= _SHOWN_CHARS else caption[:_SHOWN_CHARS] + "…"
    return {
        "scan_position": scan_position,
        "pair_key": pair_key(row["image_id"], row["text_key"]),
        "image_uri": row["image_uri"],
        "reason": REASON,
        "detail": f"no usable vector for {shown!r}",
        "pool": row.get("pool"),
        "source": row.get("source"),
    }
