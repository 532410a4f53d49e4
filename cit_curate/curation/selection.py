"""The pure functions of a selection: from similarities to the captions that are kept, and why."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa

from cit_curate.records import Bool, Float32, Int64

THRESHOLD = "threshold"
MIN_RATIO = "min_ratio"
EVERYTHING = "everything"
KEEP_RATIO = "keep_ratio"
BALANCE = "balance"
NEXT_BEST = "next_best"


def keep_similar(similarity: Float32, *, threshold: float, min_ratio: float) -> tuple[Bool, str]:
    """Mark the captions that this batch keeps (docs/method.md, outer step, 5 and 6).

    Args:
        similarity: float32 [batch], the best cosine of each caption over the metadata.
        threshold: The similarity above which a caption is kept, strictly.
        min_ratio: When a smaller share passes, the best `int(min_ratio * batch)` are kept
            instead; ties go to the earlier caption.

    Returns:
        bool [batch], and the rule that decided: "threshold" or "min_ratio".
    """
    # The comparison is made in float32, the precision of the similarities.
    passes = similarity > np.float32(threshold)
    if len(similarity) == 0 or passes.sum() / len(similarity) >= min_ratio:
        return passes, THRESHOLD
    return keep_best(similarity, int(min_ratio * len(similarity))), MIN_RATIO


def keep_best(similarity: Float32, count: int) -> Bool:
    """Mark the most similar captions of a batch; ties go to the earlier caption.

    Args:
        similarity: float32 [batch]; NaN comes last.
        count: The number of captions.

    Returns:
        bool [batch].
    """
    kept = np.zeros(len(similarity), dtype=np.bool_)
    kept[np.argsort(-similarity, kind="stable")[:count]] = True
    return kept


def lowest_kept(
    similarity: Float32, lengths: Sequence[int], *, threshold: float, min_ratio: float
) -> Float32:
    """The least similarity that a caption of each batch is kept with, or the threshold below it.

    Args:
        similarity: float32 [captions], those of several batches, one after the other.
        lengths: The captions of each batch.
        threshold: See `keep_similar`.
        min_ratio: See `keep_similar`.

    Returns:
        float32 [captions], the same for all captions of a batch.
    """
    stops = list(accumulate(lengths))
    lowest = np.full(len(similarity), threshold, dtype=np.float32)
    for stop, length in zip(stops, lengths, strict=True):
        if count := int(min_ratio * length):
            batch = slice(stop - length, stop)
            best = np.partition(similarity[batch], -count)[-count]
            lowest[batch] = min(np.float32(threshold), best)
    return lowest


def first_of_each(keys: pa.ChunkedArray, seen: set[str]) -> Bool:
    """Mark the first occurrence of each pair key that is not in `seen`, and add it to `seen`.

    Returns:
        bool [keys].
    """
    texts: list[str] = keys.to_pylist()
    num_seen = len(seen)
    if seen.isdisjoint(texts):
        seen.update(texts)
        if len(seen) == num_seen + len(texts):  # nearly always: no pair repeats within a pass
            return np.ones(len(texts), dtype=np.bool_)
        seen.difference_update(texts)
    fresh = np.zeros(len(texts), dtype=np.bool_)
    for row, key in enumerate(texts):
        if key not in seen:
            fresh[row] = True
            seen.add(key)
    return fresh


def best_per_entry(similarity: Float32, metadata_id: Int64, tie: Int64, *, best: int) -> Int64:
    """Rows of the most similar captions of each metadata entry.

    Args:
        similarity: float32 [rows].
        metadata_id: int64 [rows], the entry nearest to each caption.
        tie: int64 [rows], the scan position; of equal similarities the smaller comes first.
        best: The number of rows of an entry.

    Returns:
        int64 [at most entries * best], ordered by entry, then best first.
    """
    order = np.lexsort((tie, -similarity, metadata_id))
    return order[_place_in_run(metadata_id[order]) < best]


def place_within_entry(rank: Float32, metadata_id: Int64) -> Int64:
    """The place of each caption of a batch among those of the same metadata entry.

    Args:
        rank: float32 [batch]; of equal ranks the earlier caption comes first.
        metadata_id: int64 [batch], the entry nearest to each caption.

    Returns:
        int64 [batch], 0 for the best caption of an entry.
    """
    order = np.lexsort((np.arange(len(rank)), -rank, metadata_id))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = _place_in_run(metadata_id[order])
    return place


def _place_in_run(values: Int64) -> Int64:
    """The place of each value within its run of equal values: int64 [values]."""
    if not len(values):
        return values
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    lengths = np.diff(np.r_[starts, len(values)])
    return np.arange(len(values)) - np.repeat(starts, lengths)


def suggest_threshold(histogram: Int64, needed: int) -> float | None:
    """The highest bin edge above which a scan had at least `needed` captions.

    Args:
        histogram: int64 [bins], counts of similarities in equal bins from -1 to 1.
        needed: The number of requested pairs.

    Returns:
        The threshold, or None when the scan saw fewer captions than needed.
    """
    above = np.cumsum(histogram[::-1])[::-1]
    enough = np.flatnonzero(above >= needed)
    if not len(enough):
        return None
    return round(-1 + 2 * int(enough[-1]) / len(histogram), 2)
