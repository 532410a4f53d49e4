"""`--ahead 1`: the captions of the next outer step are scored while this one trains.

The cost of a selection, to embed captions and to search the metadata, depends on each caption
alone. So processes beside the trainer score the captions that the next scan will come to, with the
text encoder that this outer step began with: the checkpoint of the last commit. The rules, the
cursors and the ledger stay with the trainer, which takes a score by its scan position.

Every score of a stale outer step is made by these processes, with one thread each: whether ahead,
at need, for a replacement or after a resume shows in no bit.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from cit_curate.curation.curator import Curator, LaneSelection
from cit_curate.curation.scores.exact import LaneScores
from cit_curate.curation.scores.score_range import (
    Embedded,
    PrecomputedEmbedder,
    ScoreSource,
    Tower,
    pool_paths,
)
from cit_curate.engines.workers import workers_beside
from cit_curate.errors import DamagedError
from cit_curate.run.ledger import Run
from cit_curate.text_encoder.encoder import choose_device
from cit_train.config import RunConfig
from cit_train.inner_loop.trainer import TrainState
from cit_train.loop.ahead_workers import LanePrefetch, SavedSource, embed_saved, result_of
from cit_train.loop.recovery.checkpoint import checkpoint_name

# Captions that are scored ahead, of those that the outer step before has scanned. The demo's outer
# steps scan up to 1.2 times as many as the one before, and what is missing is waited for.
_MARGIN = 1.25


@dataclass
class _Step:
    """What is scored for one outer step."""

    saved: SavedSource
    prompts: Future[Embedded]
    lanes: dict[int, LanePrefetch] = field(default_factory=dict)


class PrefetchScorer:
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

    def __enter__(self) -> "PrefetchScorer":
        """Ready to score."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes, whatever they are at."""
        self._stack.close()

    @property
    def scores(self) -> LaneScores | None:
        """The scores of this outer step; None where its own encoder makes them."""
        step = self._step
        return None if step is None else lambda lane, _: self._lane(step, lane)

    def encoder(self, state: TrainState) -> PrecomputedEmbedder | None:
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
        return PrecomputedEmbedder(self._curator.prompts, result_of(self._step.prompts))

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
            for lane in self._step.lanes.values():
                lane.cancel()
        self._before = state.update
        if not self._is_scored(state.update + num_updates):
            return
        self._next = self._open(state.update)
        for each in selections:
            cursor = each.state.cursor
            start = cursor.pass_index * each.scan.order.length + cursor.position
            stop = start + int(_MARGIN * each.state.totals.scanned)
            self._lane(self._next, each.scan.lane).plan(start, stop, self._queue)

    def _is_scored(self, update: int) -> bool:
        """Whether an outer step that begins after so many updates scores anything ahead."""
        config = self._config
        is_within = config.curate.skip_until <= update < config.train.max_updates
        return bool(config.train.ahead) and is_within

    def _open(self, update: int) -> _Step:
        checkpoint = self._run.path.absolute() / checkpoint_name(update)
        # Pooling is part of what is saved; of a tower without any of ours it is its own pooler.
        text = replace(self._config.text, text_encoder=str(checkpoint), pooling="pooler")
        source = ScoreSource(
            pools=pool_paths(self._curator.pools),
            config=self._curator.config,
            metadata=self._config.metadata,
            metadata_fingerprint=self._curator.fingerprint,
            tower=Tower(text, self._device, num_threads=1),
            index_kind=self._curator.config.index,
        )
        saved = SavedSource(source, checkpoint, self._config.train.stream_seconds)
        return _Step(saved, self._started().submit(embed_saved, saved, self._curator.prompts))

    def _lane(self, step: _Step, lane: int) -> LanePrefetch:
        if lane not in step.lanes:
            step.lanes[lane] = LanePrefetch(step.saved, lane, self._started())
        return step.lanes[lane]

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
