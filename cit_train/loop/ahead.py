"""`--ahead 1`: the captions of the next outer step are scored while this one trains.

What costs in a selection depends on each caption alone: to embed it and to search the metadata. So
processes beside the trainer score where the next scan will go, with the text encoder that this
outer step began with: the checkpoint of the last commit. The rules, the cursors and the ledger stay
with the trainer, which takes a score by its scan position.

Every score of a stale outer step is made by these processes, with one thread each: whether ahead,
at need, for a replacement or after a resume shows in no bit.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from cit_curate.curation.curator import Curator, LaneScores, LaneSelection
from cit_curate.curation.scores.exact import WindowScores
from cit_curate.curation.scores.staged import Embedded, KnownTexts, pool_places
from cit_curate.engines.workers import workers_beside
from cit_curate.errors import DamagedError
from cit_curate.run.ledger import Run
from cit_curate.text_encoder.encoder import choose_device
from cit_train.config import RunConfig
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.ahead_workers import (
    Frozen,
    LaneAhead,
    Source,
    distinct_prompts,
    embed_prompts,
    result_of,
)
from cit_train.loop.recovery.checkpoint import checkpoint_name

# Captions that are scored ahead, of those that the outer step before has scanned. The demo's outer
# steps scan up to 1.2 times as many as the one before, and what is missing is waited for.
_MARGIN = 1.25


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
        return KnownTexts(distinct_prompts(self._curator), result_of(self._step.prompts))

    def begin(
        self, state: TrainState, selections: Sequence[LaneSelection], num_updates: int
    ) -> None:
        """Have the captions of the next outer step scored, while this one is trained on.

        Somewhat more than this one has scanned, from where it stands; what else is needed is scored
        then, and what is not needed any more is left.

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
            stop = start + int(_MARGIN * each.state.totals.scanned)
            self._next.lanes[lane].plan(start, stop, self._queue)

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
        checkpoint = self._run.path.absolute() / checkpoint_name(update)
        # Pooling is part of what is saved; of a tower without any of ours it is its own pooler.
        text = replace(self._config.text, text_encoder=str(checkpoint), pooling="pooler")
        wait_seconds = self._config.train.stream_seconds
        frozen = Frozen(source, checkpoint, text, self._device, wait_seconds)
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
