"""TensorBoard event files of a run: loss, learning rate, kept ratio and evaluations."""

from pathlib import Path

from cit_curate.errors import ConfigError
from cit_train.evaluation.zero_shot import Evaluation
from cit_train.inner_loop.trainer import TrainState, UpdateReport
from cit_train.loop.watcher import StepNumbers, Watcher


class TensorBoardWatcher(Watcher):
    """Writes scalars by update to a folder that `tensorboard --logdir` shows."""

    def __init__(self, folder: Path) -> None:
        """Prepare to write; the folder is created with the first scalar.

        Raises:
            ConfigError: The package `tensorboard` is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--tensorboard needs a package that is not installed; "
                "run: pip install 'cit[tensorboard]'"
            ) from error
        self._folder = folder
        self._make_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def trained(self, state: TrainState, report: UpdateReport) -> None:
        """Loss and learning rate of an update."""
        self._add(state.update, loss=report.loss, learning_rate=report.learning_rate)

    def evaluated(self, state: TrainState, evaluation: Evaluation) -> None:
        """Accuracies and the task's own metric, in percent."""
        values = {
            "accuracy": evaluation.accuracy,
            "mean_per_class": evaluation.mean_per_class,
            evaluation.metric: evaluation.value,
        }
        self._add(state.update, **values)

    def committed(self, state: TrainState, numbers: StepNumbers) -> None:
        """The kept ratio of an outer step; flushes all scalars so far to the disk."""
        self._add(state.update, kept_ratio=numbers.kept / max(numbers.scanned, 1))
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write the remaining scalars."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, update: int, **scalars: float) -> None:
        if self._writer is None:
            # A resumed run repeats the updates from here on: hide their earlier scalars.
            self._writer = self._make_writer(str(self._folder), purge_step=update)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, update)
