"""The interface through which a run reports its progress."""

from collections.abc import Sequence
from dataclasses import dataclass

from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.threshold import SimilaritySample
from cit_train.config import RunConfig
from cit_train.evaluation.zero_shot import Evaluation
from cit_train.inner_loop.trainer import TrainState, UpdateReport


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """Captions scanned, kept and selected in an outer step, over all lanes."""

    scanned: int
    kept: int
    selected: int


class Watcher:
    """Receives the progress of a run; does nothing unless a subclass overrides a method."""

    def opened(self, notes: Sequence[str]) -> None:
        """Once the run is open, with the lines that say which classes were read."""

    def sampled(self, sample: SimilaritySample, config: RunConfig) -> None:
        """Before the first outer step, with similarities that show what the threshold means."""

    def curating(self, outer_step: int, lane: int, totals: ScanTotals) -> None:
        """After each scanned batch."""

    def trained(self, state: TrainState, report: UpdateReport) -> None:
        """After each update."""

    def evaluated(self, state: TrainState, evaluation: Evaluation) -> None:
        """After each evaluation."""

    def committed(self, state: TrainState, numbers: StepNumbers) -> None:
        """After each outer step, once it is on the disk; in the thread that has written it."""


class Watchers(Watcher):
    """Forwards every call to several watchers."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def opened(self, notes: Sequence[str]) -> None:
        """Once the run is open."""
        for watcher in self._watchers:
            watcher.opened(notes)

    def sampled(self, sample: SimilaritySample, config: RunConfig) -> None:
        """Before the first outer step."""
        for watcher in self._watchers:
            watcher.sampled(sample, config)

    def curating(self, outer_step: int, lane: int, totals: ScanTotals) -> None:
        """After each scanned batch."""
        for watcher in self._watchers:
            watcher.curating(outer_step, lane, totals)

    def trained(self, state: TrainState, report: UpdateReport) -> None:
        """After each update."""
        for watcher in self._watchers:
            watcher.trained(state, report)

    def evaluated(self, state: TrainState, evaluation: Evaluation) -> None:
        """After each evaluation."""
        for watcher in self._watchers:
            watcher.evaluated(state, evaluation)

    def committed(self, state: TrainState, numbers: StepNumbers) -> None:
        """After each outer step, once it is on the disk; in the thread that has written it."""
        for watcher in self._watchers:
            watcher.committed(state, numbers)
