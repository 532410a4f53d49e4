"""Scores that processes beside the trainer compute with the text encoder of a checkpoint.

`score_saved` runs in those processes. `LanePrefetch` is the trainer's side of a lane, and looks up
scores by scan position.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import Scores
from cit_curate.curation.scores.score_range import (
    Embedded,
    EmbedTask,
    ScoreRange,
    ScoreSource,
    embed_texts,
    score_range,
)
from cit_curate.errors import PeerLostError
from cit_curate.records import CaptionBatch
from cit_train.loop.recovery.checkpoint import check_checkpoint

# Captions of a range: enough to fill the forward passes of most lengths, and few enough that a
# score needed at once does not wait long for the range before it.
RANGE_CAPTIONS = 2_048
_POLL_SECONDS = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class SavedSource:
    """A score source whose text tower is a checkpoint that may not be on the disk yet.

    Attributes:
        source: The pools, metadata, rules and text tower to score with.
        checkpoint: The folder of the checkpoint.
        wait_seconds: The longest wait for this folder, in seconds.
    """

    source: ScoreSource
    checkpoint: Path
    wait_seconds: float


def embed_saved(saved: SavedSource, texts: tuple[str, ...]) -> Embedded:
    """The fingerprint of the checkpoint's text encoder, and its vectors of `texts`.

    Raises:
        PeerLostError: The checkpoint does not appear in time.
        DamagedError: The checkpoint is damaged.
    """
    _wait_for(saved)
    return embed_texts(EmbedTask(saved.source.tower, texts))


def score_saved(saved: SavedSource, lane: int, start: int, stop: int) -> Scores:
    """The scores of scan positions `start` to `stop` - 1 of a lane.

    Raises:
        PeerLostError: The checkpoint does not appear in time.
        DamagedError: The checkpoint is damaged.
        ConfigError: The pool or the metadata have changed since the run was opened.
    """
    _wait_for(saved)
    return score_range(ScoreRange(saved.source, lane, start, stop))


@lru_cache(maxsize=2)  # the checkpoints of this outer step, for replacements, and of the next one
def _wait_for(saved: SavedSource) -> None:
    deadline = time.monotonic() + saved.wait_seconds
    while not saved.checkpoint.is_dir():
        if time.monotonic() > deadline:
            raise PeerLostError(
                f"no checkpoint {saved.checkpoint} for --ahead after {saved.wait_seconds:.0f} s; "
                "raise --stream-seconds if the disk is slow, and continue with --resume"
            )
        time.sleep(_POLL_SECONDS)
    check_checkpoint(saved.checkpoint)


@dataclass(frozen=True)
class _PlannedRange:
    """A range of scan positions and its scores, which may still be pending."""

    start: int
    stop: int
    scores: Future[Scores]


class LanePrefetch:
    """The scores of one lane in one outer step, by scan position; a `WindowScores`."""

    def __init__(self, saved: SavedSource, lane: int, workers: Executor) -> None:
        self._saved, self._lane, self._workers = saved, lane, workers
        self._ranges: deque[_PlannedRange] = deque()
        # A shard writer's thread requests replacements while the next scores are planned.
        self._lock = threading.Lock()

    def __call__(self, window: Sequence[CaptionBatch], totals: ScanTotals) -> Scores:
        """The scores of a window; drops those of earlier captions."""
        start = int(window[0].scan_position[0])
        stop = start + sum(map(len, window))
        with self._lock:
            while self._ranges and self._ranges[0].stop <= start:
                self._ranges.popleft()
            if not self._ranges or self._ranges[-1].stop < stop:
                last = self._ranges[-1].stop if self._ranges else start
                self._plan(last, max(stop, last + RANGE_CAPTIONS), self._score)
            similarity, nearest = [], []
            for planned in self._ranges:
                if planned.start >= stop:
                    break
                part = slice(max(start - planned.start, 0), stop - planned.start)
                scores = result_of(planned.scores)
                similarity.append(scores.similarity[part])
                nearest.append(scores.nearest[part])
        return Scores(np.concatenate(similarity), np.concatenate(nearest))

    def plan(self, start: int, stop: int, queue: Executor) -> None:
        """Score captions ahead, submitted by the threads of `queue`, which wait for each range."""

        def score_and_wait(first: int, last: int) -> Scores:
            return self._score(first, last).result()

        with self._lock:
            self._plan(start, stop, lambda *ends: queue.submit(score_and_wait, *ends))

    def cancel(self) -> None:
        """Cancel the ranges that have not begun; the selection is complete without them."""
        with self._lock:
            while self._ranges and self._ranges[-1].scores.cancel():
                self._ranges.pop()

    def _plan(self, start: int, stop: int, submit: Callable[[int, int], Future[Scores]]) -> None:
        for first in range(start, stop, RANGE_CAPTIONS):
            last = min(first + RANGE_CAPTIONS, stop)
            self._ranges.append(_PlannedRange(first, last, submit(first, last)))

    def _score(self, start: int, stop: int) -> Future[Scores]:
        return self._workers.submit(score_saved, self._saved, self._lane, start, stop)


def result_of(future: Future[T]) -> T:
    """The result of a scoring process.

    Raises:
        PeerLostError: A scoring process was killed.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise PeerLostError(
            "a process of --ahead was killed, perhaps because memory ran out; continue with "
            "--resume, and fewer --ahead-workers, each of which holds two text towers"
        ) from error
