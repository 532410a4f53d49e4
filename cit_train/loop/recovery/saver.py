"""Saving while training continues: one job at a time, in a thread of its own."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from cit_train.config import TrainConfig


class Saver:
    """Runs one save job at a time in a thread; an error of a job is raised by the next call.

    The objects that a job writes must not change any more.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._every, self._minutes = config.save_every, config.save_minutes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self._saved_at, self._saved_update = time.monotonic(), 0

    def __enter__(self) -> "Saver":
        """Ready to save."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the pending job; its error is raised unless the block has raised one."""
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown(wait=True)

    def submit(self, job: Callable[[], None], *, update: int | None = None) -> None:
        """Start a job, once the previous one has ended.

        Args:
            job: A function that writes files.
            update: The update that the run can resume after, once the job has ended; None for a
                job that saves no state to resume from.

        Raises:
            Exception: The error of the previous job.
        """
        self.wait()
        self._pending = self._thread.submit(job)
        if update is not None:
            self._saved_at, self._saved_update = time.monotonic(), update

    def wait(self) -> None:
        """Wait for the pending job.

        Raises:
            Exception: Its error.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def is_due(self, update: int) -> bool:
        """Whether enough updates or minutes have passed to save the state after `update`."""
        if update == self._saved_update:
            return False
        if self._every is not None and update - self._saved_update >= self._every:
            return True
        if self._minutes is None:
            return False
        return time.monotonic() - self._saved_at >= 60 * self._minutes
