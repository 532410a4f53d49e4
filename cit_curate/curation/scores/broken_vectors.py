"""Captions whose vector is NaN, infinite or zero: set aside one by one, up to a limit.

A text tower gives them for a rare token that has overflowed, or for every caption once training has
diverged. Their similarity is NaN from where they are embedded to where the scan leaves them out.
Where every vector is sound, nobody looks at single captions.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cit_curate.errors import BrokenVectorsError, NotFiniteError
from cit_curate.records import Bool, CaptionBatch, Embedder, Float32, Int64, PoolCursor, pair_key
from cit_curate.reject_limit import LANE_LIMIT
from cit_curate.text_encoder.texts import Texts
from indexes.protocol import MetadataIndex, Queries

REASON = "broken_vector"
_SHOWN_CHARS = 80

Rejects = Mapping[PoolCursor, Sequence[Mapping[str, Any]]]
"""What is set aside of each batch, by the cursor after it: rows of the ledger's `rejects`."""

logger = logging.getLogger(__name__)


def embed_captions(encoder: Embedder, texts: Texts) -> tuple[Queries, Bool | None]:
    """Embed captions, those without a usable vector among them.

    Returns:
        float32 [texts, dim], unit norm, with any vector where there is no usable one; they stay on
        the encoder's device. And bool [texts], where that is, None = nowhere.
    """
    try:
        return encoder.embed_on_device(texts), None
    except BrokenVectorsError as error:
        vectors = error.vectors.copy()
        vectors[error.broken] = np.eye(1, vectors.shape[1], dtype=np.float32)
        return vectors, error.broken


def mark_broken(similarity: Float32, broken: Bool | None) -> Float32:
    """The similarities, NaN where a text had no usable vector."""
    return similarity if broken is None else np.where(broken, np.float32(np.nan), similarity)


def best_entries(encoder: Embedder, index: MetadataIndex, texts: Texts) -> tuple[Float32, Int64]:
    """Best similarity and nearest entry: float32 and int64 [texts]; NaN as in `mark_broken`."""
    vectors, broken = embed_captions(encoder, texts)
    found = index.search(vectors)
    return mark_broken(found.similarity[:, 0], broken), found.ids[:, 0]


def leave_out_broken(
    window: Sequence[CaptionBatch], sound: Bool
) -> tuple[list[CaptionBatch], Rejects]:
    """The batches of a window without some captions, and what these are in the ledger.

    Args:
        window: Batches that follow each other.
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
        rejects[batch.cursor] = [_reject(*each) for each in zip(positions, rows, strict=True)]
    return kept, rejects


def check_limit(rejects: Rejects, *, before: Sequence[Mapping[str, Any]], num_scanned: int) -> None:
    """Say what of a window is set aside, or raise when it is too much.

    Args:
        rejects: Of this window.
        before: What was set aside before, in the order of the scan.
        num_scanned: Captions scanned, those of this window included.

    Raises:
        NotFiniteError: They are more than the limit, or all captions there were.
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
    """How many of the ascending positions follow each other without a gap, at most."""
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
