"""`--ahead 1`: the captions of the next outer step are scored while this one trains.

What costs in a selection depends on each caption alone: to embed it and to search the metadata. So
processes beside the trainer score where the next scan will go, with the text encoder that this
outer step began with: the checkpoint of the last commit. The rules, the cursors and the ledger stay
with the trainer, which takes a score by its scan position.

Every score of a stale outer step is made by these processes, with one thread each: whether ahead,
at need, for a replacement or after a resume shows in no bit.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation import Curator, LaneScores, LaneSelection
from cit_curate.curator import WindowScores, scanned_texts
from cit_curate.errors import ConfigError, DamagedError, PeerLostError, ResourceError
from cit_curate.ledger import Run
from cit_curate.pool.workers import workers_beside
from cit_curate.records import CaptionBatch, Float32, Int64, PoolCursor
from cit_curate.scores import Embedded, KnownTexts, PoolPlaces, open_places, pool_places
from cit_curate.text_encoder import TextEncoder, choose_device, embed_metadata
from cit_train.checkpoint import check_checkpoint, checkpoint_name
from cit_train.config import RunConfig
from cit_train.trainer import TrainState
from indexes.protocol import MetadataIndex
from indexes.versioned import build_index

# Captions of a unit of work: enough to fill the forward passes of most lengths, and few enough
# that a score that is needed at once does not wait long for the unit before it.
STRETCH = 2_048
_POLL_SECONDS = 0.05

T = TypeVar("T")
Scores = tuple[Float32, Int64]


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
    """Best similarity and nearest entry of each caption: float32 and int64 [captions].

    Raises:
        PeerLostError: The checkpoint does not come.
        DamagedError: The checkpoint is.
        ConfigError: The pool or the metadata have changed since the run was opened.
        NotFiniteError: See `TextEncoder.embed`.
    """
    curator, opened = _curator(stretch.frozen.source), _opened(stretch.frozen)
    order = curator.orders[stretch.lane]
    cursor = PoolCursor(*divmod(stretch.start, order.length))
    num_captions = stretch.stop - stretch.start
    texts = [
        text
        for batch in order.batches(cursor, num_captions, num_captions)
        for text in scanned_texts(curator.config, stretch.lane, batch)
    ]
    found = opened.index.search(opened.encoder.embed(texts))
    return found.similarity[:, 0], found.ids[:, 0]


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
    texts = _distinct(curator.prompts)
    embedded = Embedded(encoder.fingerprint, encoder.embed(texts))
    known = KnownTexts(texts, embedded)
    vectors = embed_metadata(known.embed, curator.entries, curator.templates)
    return Opened(encoder, embedded, build_index(vectors, curator.config.index))


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


def _distinct(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


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
                found = _result(scores)
                similarity.append(found[0][part])
                nearest.append(found[1][part])
        return np.concatenate(similarity), np.concatenate(nearest)

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


@dataclass
class _Step:
    """What is there for one outer step."""

    frozen: Frozen
    prompts: Future[Embedded]
    lanes: dict[int, LaneAhead] = field(default_factory=dict)


class Ahead:
    """The processes beside the trainer, and the outer steps that they score for; idle without it.

    Attributes:
        staleness: Updates since the text encoder that this outer step selects with.
    """

    def __init__(self, config: RunConfig, run: Run, curator: Curator, device: torch.device) -> None:
        """Start nothing yet.

        Raises:
            ConfigError: There is no such --curate-device.
            DamagedError: The checkpoint that the run goes on to select with is gone.
        """
        self.staleness = 0
        self._config, self._run, self._curator = config, run, curator
        self._device = str(choose_device(config.train.curate_device or str(device)))
        self._stack = ExitStack()
        self._workers: Executor | None = None
        self._step: _Step | None = None
        self._next: _Step | None = None
        commits = run.commits() if config.train.ahead else []
        # Updates made when the outer step before the next one began.
        self._before = commits[-2].update if len(commits) > 1 else 0
        checkpoint = run.path / checkpoint_name(self._before)
        if commits and self._is_scored(commits[-1].update) and not checkpoint.is_dir():
            raise DamagedError(
                f"{checkpoint} is missing, which --ahead 1 selects with after the last commit"
            )

    def __enter__(self) -> "Ahead":
        """Ready to score."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes, whatever they are at."""
        self._stack.close()

    @property
    def scores(self) -> LaneScores | None:
        """Where the lanes of this outer step have their scores from; None: from its encoder."""
        return None if self._step is None else self._lane

    def encoder(self, state: TrainState) -> KnownTexts | None:
        """The text encoder that an outer step selects with: that of the outer step before.

        Returns:
            None when it is the encoder as it is now: without `--ahead`, in the first outer step,
            and where everything passes.
        """
        self._step, self._next, self.staleness = self._next, None, 0
        if not state.outer_step or not self._is_scored(state.update):
            self._step = None
            return None
        self.staleness = state.update - self._before
        self._step = self._step or self._open(self._before)
        return KnownTexts(_distinct(self._curator.prompts), _result(self._step.prompts))

    def begin(
        self, state: TrainState, selections: Sequence[LaneSelection], num_updates: int
    ) -> None:
        """Have the captions of the next outer step scored, while this one is trained on.

        As many as this one has scanned, from where it stands; what more is needed is scored then.

        Args:
            state: Where the run stands before the first update of this outer step.
            selections: What its lanes have selected.
            num_updates: Its updates.
        """
        if self._step is not None:
            for scored in self._step.lanes.values():
                scored.leave()
        self._before = state.update
        if not self._is_scored(state.update + num_updates):
            return
        self._next = self._open(state.update)
        for each in selections:
            lane, cursor = each.scan.lane, each.state.cursor
            start = cursor.pass_index * self._curator.orders[lane].length + cursor.position
            self._next.lanes[lane] = LaneAhead(self._next.frozen, lane, self._started())
            self._next.lanes[lane].plan(start, start + each.state.totals.scanned, self._queue)

    def _is_scored(self, update: int) -> bool:
        """Whether an outer step that begins after so many updates scores anything ahead."""
        config = self._config
        is_within = config.curate.skip_until <= update < config.train.max_updates
        return bool(config.train.ahead) and is_within

    def _open(self, update: int) -> _Step:
        source = Source(
            pool_places(self._curator.pools),
            self._config.metadata,
            self._curator.config,
            self._curator.fingerprint,
        )
        checkpoint = self._run.path / checkpoint_name(update)
        # Pooling is part of what is saved; of a tower without any of ours it is its own pooler.
        text = replace(self._config.text, text_encoder=str(checkpoint), pooling="pooler")
        frozen = Frozen(
            source, checkpoint.absolute(), text, self._device, self._config.train.stream_seconds
        )
        return _Step(frozen, self._started().submit(embed_prompts, frozen))

    def _lane(self, lane: int) -> WindowScores:
        assert self._step is not None
        workers = self._started()
        return self._step.lanes.setdefault(lane, LaneAhead(self._step.frozen, lane, workers))

    def _started(self) -> Executor:
        """The processes, which the first to need them starts, and the queue before them."""
        if self._workers is None:
            num_workers = self._config.train.ahead_workers
            self._workers = self._stack.enter_context(workers_beside(num_workers))
            # A thread a process, each of which waits for what it has given: so at most one unit
            # a process lies before what somebody needs at once.
            self._queue = ThreadPoolExecutor(num_workers, thread_name_prefix="ahead")
            self._stack.callback(self._queue.shutdown, wait=False, cancel_futures=True)
        return self._workers


def _result(future: Future[T]) -> T:
    """A result of the processes.

    Raises:
        ResourceError: One of them was killed.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "a process of --ahead was killed, perhaps for want of memory; go on with --resume, and "
            "fewer --ahead-workers, each of which holds two text towers"
        ) from error
