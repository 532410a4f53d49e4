"""Terminal output of an evaluation: a bar for each task, a line when it ends, a table."""

from collections.abc import Sequence
from types import TracebackType

from rich.progress import TaskID
from rich.table import Table

from cit_curate.metadata.tasks import Metric
from cit_curate.terminal import add_row, count_and_rate, inert, one_line, progress_bar
from cit_train.evaluation.suite import TaskResult, mean_value

__all__ = ["METRIC_TITLES", "SuiteProgress", "suite_table"]

METRIC_TITLES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "mean_top1_top5": "mean top-1, top-5",
    "roc_auc": "ROC-AUC",
}


class SuiteProgress:
    """The progress of tasks on stderr; only one line a task where stderr is not a terminal."""

    def __init__(self) -> None:
        self._progress = progress_bar()
        self._bar: TaskID | None = None

    def __enter__(self) -> "SuiteProgress":
        """Start the display."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore the terminal."""
        self._progress.stop()

    def update(self, task: str, done: int, total: int) -> None:
        """Show how many images of a task are done."""
        if self._bar is None:
            numbers = count_and_rate(done, total, None, "pictures")
            self._bar = self._progress.add_task(task, total=total, numbers=numbers)
        bar = next(bar for bar in self._progress.tasks if bar.id == self._bar)
        numbers = count_and_rate(done, total, bar.elapsed, "pictures")
        self._progress.update(self._bar, completed=done, numbers=numbers)

    def finish(self, result: TaskResult) -> None:
        """Replace a task's bar by a line with its result."""
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None
        self._progress.console.print(inert(_line(result)), soft_wrap=True)


def suite_table(results: Sequence[TaskResult], *, title: str) -> Table:
    """The table of results: one row a task, and the mean of the finished ones."""
    table = Table(title=inert(title), title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("metric")
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    for result in results:
        metric = METRIC_TITLES[result.metric]
        if result.value is None or result.interval is None:
            add_row(table, result.task, "", result.status, "", "", "")
            continue
        mark = "*" if result.is_partial else ""
        add_row(
            table,
            result.task,
            f"{result.num_images:,}{mark}",
            metric,
            f"{result.value:.1f}",
            f"{result.interval.low:.1f} - {result.interval.high:.1f}",
            f"{result.seconds:.1f}",
        )
    mean, num_done = mean_value(results), sum(result.value is not None for result in results)
    if mean is not None:
        table.add_section()
        seconds = sum(result.seconds for result in results)
        of_all = f"{num_done} of {len(results)} tasks"
        add_row(table, "mean", "", of_all, f"{mean:.1f}", "", f"{seconds:.1f}")
    if any(result.is_partial for result in results):
        table.caption = "* a part of the task's pictures (--limit): for a quick look"
        table.caption_justify = "left"
    return table


def _line(result: TaskResult) -> str:
    if result.value is None or result.interval is None:
        return f"{result.task}: {result.status}: {one_line(result.reason)}"
    pictures = f"{result.num_images:,} pictures"
    if result.is_partial:
        pictures = f"{result.num_images:,} of {result.num_found:,} pictures"
    if result.num_rejected:
        pictures += f", {result.num_rejected:,} unreadable"
    notes = "".join(f"; {note}" for note in result.notes)
    return (
        f"{result.task}: {METRIC_TITLES[result.metric]} {result.value:.1f} % "
        f"({pictures}, {result.num_classes:,} classes, {result.source}, "
        f"{result.seconds:.1f} s{notes})"
    )
