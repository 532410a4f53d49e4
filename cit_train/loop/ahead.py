"""`--ahead 1`: score the captions of the next outer step while this one trains.

The costly part of a selection, embedding captions and searching the metadata, depends on each
caption alone. So processes beside the trainer score the captions that the next scan will reach,
with the text encoder that this outer step began with: the checkpoint of the last commit. The rules,
the cursors and the ledger stay with the trainer, which looks up a score by its scan position.

These processes compute every score of a stale outer step, with one thread each. So a score has the
same bits whether it was computed ahead, on demand, for a replacement or after a resume.
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

# Captions to score ahead, as a multiple of those that this outer step scanned. The demo's outer
# steps scan up to 1.2 times as many as the one before, and training waits for missing scores.
_MARGIN = 1.25


@dataclass
class _Step:
    """The scores of one outer step, with the prompt vectors of the same text encoder."""

    saved: SavedSource
    prompts: Future[Embedded]
    lanes: dict[int, LanePrefetch] = field(default_factory=dict)


class PrefetchScorer:
    """The scoring processes, and the outer steps that they score for; idle without `--ahead`.

    Attributes:
        staleness: Age of the text encoder that this outer step selects with, in updates.
    """

    def __init__(self, config: RunConfig, run: Run, curator: Curator, device: torch.device) -> None:
        """Start no process yet.

        Raises:
            ConfigError: The device of --curate-device does not exist.
            DamagedError: The checkpoint that the resumed run selects with is missing.
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
                f"{checkpoint} is missing; --ahead 1 selects with it after the last commit"
            )

    def __enter__(self) -> "PrefetchScorer":
        """Ready to score."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes, even in the middle of a range."""
        self._stack.close()

    @property
    def scores(self) -> LaneScores | None:
        """The scores of this outer step; None if its captions were not scored ahead."""
        step = self._step
        return None if step is None else lambda lane, _: self._lane(step, lane)

    def encoder(self, state: TrainState) -> PrecomputedEmbedder | None:
        """The text encoder that an outer step selects with: that of the previous outer step.

        Returns:
            None for the current encoder: without `--ahead`, in the first outer step, and while
            every caption passes (`skip_until`).
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
        """Start to score the captions of the next outer step, while this one trains.

        It scores somewhat more captions than this outer step scanned, from its cursors on. Further
        scores are computed on demand.

        Args:
            state: The state before the first update of this outer step.
            selections: The selections of its lanes.
            num_updates: Updates of this outer step.
        """
        if self._step is not None:
            for lane in self._step.lanes.values():
                lane.cancel()
        self._before = state.update
        if not self._is_scored(state.update + num_updates):
            return
        self._next = self._open(state.update)
        for selection in selections:
            scan, cursor = selection.scan, selection.state.cursor
            start = cursor.pass_index * scan.order.length + cursor.position
            stop = start + int(_MARGIN * selection.state.totals.scanned)
            self._lane(self._next, scan.lane).plan(start, stop, self._queue)

    def _is_scored(self, update: int) -> bool:
        """Whether the captions of an outer step that begins after `update` are scored ahead."""
        config = self._config
        is_within = config.curate.skip_until <= update < config.train.max_updates
        return bool(config.train.ahead) and is_within

    def _open(self, update: int) -> _Step:
        checkpoint = self._run.path.absolute() / checkpoint_name(update)
        # A checkpoint's pooler holds our pooling, or else the tower's own.
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
        prompts = self._open_workers().submit(embed_saved, saved, self._curator.prompts)
        return _Step(saved, prompts)

    def _lane(self, step: _Step, lane: int) -> LanePrefetch:
        if lane not in step.lanes:
            step.lanes[lane] = LanePrefetch(step.saved, lane, self._open_workers())
        return step.lanes[lane]

    def _open_workers(self) -> Executor:
        """The processes, which the first call starts together with their queue."""
        if self._workers is None:
            num_workers = self._config.train.ahead_workers
            self._workers = self._stack.enter_context(workers_beside(num_workers))
            # One thread per process, and each waits for the range that it submitted. So a range
            # that is needed at once waits behind at most one range per process.
            self._queue = ThreadPoolExecutor(num_workers, thread_name_prefix="ahead")
            self._stack.callback(self._queue.shutdown, wait=False, cancel_futures=True)
        return self._workers
