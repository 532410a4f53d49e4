"""Captions scored beside the trainer, stretch by stretch, with a text encoder that is frozen.

The functions here run in processes of their own, which open what they need by its place on the
disk; `LaneAhead` is the trainer's side of a lane, and takes the scores by scan position.
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
import torch

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curator import Curator
from cit_curate.curation.scores.broken_vectors import best_entries
from cit_curate.curation.scores.exact import Scores, scanned_texts
from cit_curate.curation.scores.staged import Embedded, KnownTexts, PoolPlaces, open_places
from cit_curate.errors import ConfigError, PeerLostError
from cit_curate.metadata.vectors import embed_metadata, embed_or_nan
from cit_curate.records import CaptionBatch, PoolCursor
from cit_curate.text_encoder.encoder import TextEncoder
from cit_train.loop.recovery.checkpoint import check_checkpoint
from indexes.build import build_index
from indexes.protocol import MetadataIndex

# Captions of a unit of work: enough to fill the forward passes of most lengths, and few enough
# that a score that is needed at once does not wait long for the unit before it.
STRETCH = 2_048
_POLL_SECONDS = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Which captions are scored against which metadata, as a process opens it.

    Attributes:
        fingerprint: Of the metadata.
    """

    pools: PoolPlaces
    metadata: MetadataConfig
    config: CurateConfig
    fingerprint: str


@dataclass(frozen=True)
class Frozen:
    """A text encoder that training no longer moves, and what it scores.

    Attributes:
        checkpoint: Folder of its weights; perhaps still on its way to the disk.
        wait_seconds: How long it may be.
    """

    source: Source
    checkpoint: Path
    text: TextTowerConfig
    device: str
    wait_seconds: float


@dataclass(frozen=True)
class Stretch:
    """Scan positions `start` to `stop` - 1 of a lane."""

    frozen: Frozen
    lane: int
    start: int
    stop: int


@dataclass(frozen=True)
class Opened:
    """A frozen text encoder within a process, its prompts embedded, and their index."""

    encoder: TextEncoder
    prompts: Embedded
    index: MetadataIndex


def embed_prompts(frozen: Frozen) -> Embedded:
    """The encoder's version, and the vectors of `Curator.prompts`, each once."""
    return _opened(frozen).prompts


def score(stretch: Stretch) -> Scores:
    """The scores of a stretch.

    Raises:
        PeerLostError: The checkpoint does not come.
        DamagedError: The checkpoint is.
        ConfigError: The pool or the metadata have changed since the run was opened.
    """
    curator, opened = _curator(stretch.frozen.source), _opened(stretch.frozen)
    order = curator.orders[stretch.lane]
    cursor = PoolCursor(*divmod(stretch.start, order.length))
    num_captions = stretch.stop - stretch.start
    order.take_tokens(opened.encoder.tokenizer_key)
    batches = list(order.batches(cursor, num_captions, num_captions))
    texts = scanned_texts(curator.config, stretch.lane, batches)
    return Scores(*best_entries(opened.encoder, opened.index, texts))


@lru_cache(maxsize=1)
def _curator(source: Source) -> Curator:
    curator = Curator(open_places(source.pools), source.metadata, source.config)
    if curator.fingerprint != source.fingerprint:
        raise ConfigError(
            f"--metadata {source.metadata.metadata} has changed since this run was opened; put it "
            "back, and go on with --resume"
        )
    return curator


@lru_cache(maxsize=2)  # this outer step's, for replacements, and the next one's
def _opened(frozen: Frozen) -> Opened:
    torch.set_num_threads(1)
    curator = _curator(frozen.source)
    _wait_for(frozen)
    check_checkpoint(frozen.checkpoint)
    encoder = TextEncoder.load(frozen.text, device=frozen.device)
    texts = distinct_prompts(curator)
    embedded = Embedded(encoder.fingerprint, embed_or_nan(encoder.embed, texts))
    known = KnownTexts(texts, embedded)
    vectors = embed_metadata(known.embed, curator.entries, curator.templates)
    index = build_index(vectors, curator.config.index, device=encoder.device)
    return Opened(encoder, embedded, index)


def _wait_for(frozen: Frozen) -> None:
    deadline = time.monotonic() + frozen.wait_seconds
    while not frozen.checkpoint.is_dir():
        if time.monotonic() > deadline:
            raise PeerLostError(
                f"no checkpoint {frozen.checkpoint} after {frozen.wait_seconds:.0f} s, which "
                "--ahead scores with; raise --stream-seconds if the disk is slow, and go on with "
                "--resume"
            )
        time.sleep(_POLL_SECONDS)


def distinct_prompts(curator: Curator) -> tuple[str, ...]:
    """`Curator.prompts`, each once: the texts that `embed_prompts` gives the vectors of."""
    return tuple(dict.fromkeys(curator.prompts))


class LaneAhead:
    """The scores of one lane in one outer step, by scan position; a `WindowScores`."""

    def __init__(self, frozen: Frozen, lane: int, workers: Executor) -> None:
        self._frozen, self._lane, self._workers = frozen, lane, workers
        self._stretches: deque[tuple[Stretch, Future[Scores]]] = deque()
        # The thread that writes shards asks for replacements while the next scores are planned.
        self._lock = threading.Lock()

    def __call__(self, window: Sequence[CaptionBatch]) -> Scores:
        """The scores of these captions, and of no earlier ones any more."""
        start = int(window[0].scan_position[0])
        stop = start + sum(map(len, window))
        with self._lock:
            while self._stretches and self._stretches[0][0].stop <= start:
                self._stretches.popleft()
            if not self._stretches or self._stretches[-1][0].stop < stop:
                last = self._stretches[-1][0].stop if self._stretches else start
                self._plan(last, max(stop, last + STRETCH), self._score)
            similarity, nearest = [], []
            for stretch, scores in self._stretches:
                if stretch.start >= stop:
                    break
                part = slice(max(start - stretch.start, 0), stop - stretch.start)
                found = result_of(scores)
                similarity.append(found.similarity[part])
                nearest.append(found.nearest[part])
        return Scores(np.concatenate(similarity), np.concatenate(nearest))

    def plan(self, start: int, stop: int, queue: Executor) -> None:
        """Have these captions scored ahead, by the threads of `queue`, which wait for each."""
        with self._lock:
            self._plan(start, stop, lambda stretch: queue.submit(self._score_and_wait, stretch))

    def leave(self) -> None:
        """Score no more of what is planned: the selection is there."""
        with self._lock:
            while self._stretches and self._stretches[-1][1].cancel():
                self._stretches.pop()

    def _plan(self, start: int, stop: int, scored: Callable[[Stretch], Future[Scores]]) -> None:
        for first in range(start, stop, STRETCH):
            stretch = Stretch(self._frozen, self._lane, first, min(first + STRETCH, stop))
            self._stretches.append((stretch, scored(stretch)))

    def _score(self, stretch: Stretch) -> Future[Scores]:
        return self._workers.submit(score, stretch)

    def _score_and_wait(self, stretch: Stretch) -> Scores:
        return self._score(stretch).result()


def result_of(future: Future[T]) -> T:
    """A result of the processes.

    Raises:
        PeerLostError: One of them was killed.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise PeerLostError(
            "a process of --ahead was killed, perhaps for want of memory; go on with --resume, and "
            "fewer --ahead-workers, each of which holds two text towers"
        ) from error
