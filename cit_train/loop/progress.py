"""A training run on a terminal: a bar with rate and time left, and one line per outer step."""

import contextlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType

from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.threshold import SimilaritySample
from cit_curate.terminal import inert, progress_bar
from cit_train.config import RunConfig
from cit_train.evaluation.zero_shot import Evaluation
from cit_train.inner_loop.trainer import TrainState, UpdateReport
from cit_train.loop.watcher import StepNumbers, Watcher


class TerminalWatcher(Watcher):
    """Shows a run on stderr; where stderr is not a terminal, only the lines."""

    def __init__(self, max_updates: int, *, label: str = "updates") -> None:
        self._label = label
        self._max_updates = max_updates
        self._progress = progress_bar()
        self._bar = self._progress.add_task(label, total=max_updates, numbers="")

    def __enter__(self) -> "TerminalWatcher":
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the bar and restore the terminal."""
        self._progress.stop()

    def opened(self, notes: Sequence[str]) -> None:
        """Print which classes were read."""
        for note in notes:
            self._line(note)

    def sampled(self, sample: SimilaritySample, config: RunConfig) -> None:
        """Print what the threshold means on this pool."""
        # The pairs of an outer step are those of its batches, which --accumulate multiplies.
        self._line(sample.line(replace(config.curate, curate_every=config.batches_per_step)))

    def curating(self, outer_step: int, lane: int, totals: ScanTotals) -> None:
        """Show the counts of the scan so far."""
        numbers = f"{totals.kept:,} of {totals.scanned:,} captions kept"
        description = f"curating, outer step {outer_step}" + (f", lane {lane}" if lane else "")
        self._progress.update(self._bar, description=description, numbers=numbers)

    def trained(self, state: TrainState, report: UpdateReport) -> None:
        """Advance the bar to this update."""
        self._progress.update(
            self._bar,
            completed=state.update,
            description=self._label,
            numbers=f"{state.update:,} of {self._max_updates:,}, loss {report.loss:.3f}",
        )

    def evaluated(self, state: TrainState, evaluation: Evaluation) -> None:
        """Print the accuracy."""
        self._line(
            f"update {state.update}: accuracy {evaluation.accuracy:.1f} %, "
            f"mean per class {evaluation.mean_per_class:.1f} % "
            f"({evaluation.num_images:,} pictures, chance {evaluation.chance:.1f} %)"
        )

    def committed(self, state: TrainState, numbers: StepNumbers) -> None:
        """Print the counts of the outer step."""
        self._line(
            f"outer step {state.outer_step - 1} committed at update {state.update}: "
            f"{numbers.kept:,} of {numbers.scanned:,} captions passed "
            f"({numbers.kept / numbers.scanned:.1%}), {numbers.selected:,} selected"
        )

    def _line(self, text: str) -> None:
        self._progress.console.print(inert(text), soft_wrap=True)


def is_shown() -> bool:
    """Whether this process may print: with several ranks, only rank 0 does."""
    return int(os.environ.get("RANK", "0")) == 0


def watching(max_updates: int, *, label: str = "updates") -> AbstractContextManager[Watcher]:
    """A watcher that shows the run on the terminal, or one that does nothing on the other ranks."""
    if is_shown():
        return TerminalWatcher(max_updates, label=label)
    return contextlib.nullcontext(Watcher())
