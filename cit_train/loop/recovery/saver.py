"""Saving while training goes on: one thing after the other, in a thread of its own."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from cit_train.config import TrainConfig


class Saver:
    """Writes what it is given, in order, and tells what went wrong with it at the next call.

    What is given to it must not change any more; a file shows only once it is whole.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._every, self._minutes = config.save_every, config.save_minutes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self._saved_at, self._saved_update = time.monotonic(), 0

    def __enter__(self) -> "Saver":
        """Ready to write."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what was given; its failure is raised unless there is one already."""
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown(wait=True)

    def submit(self, job: Callable[[], None], *, update: int | None = None) -> None:
        """Let `job` write, once what was given before is written.

        Args:
            job: Writes files.
            update: With it the run can go on after this update.

        Raises:
            Exception: What went wrong with what was given before.
        """
        self.wait()
        self._pending = self._thread.submit(job)
        if update is not None:
            self._saved_at, self._saved_update = time.monotonic(), update

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: What went wrong.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def is_due(self, update: int) -> bool:
        """Whether the state after `update` should be saved: enough updates or minutes have gone."""
        if update == self._saved_update:
            return False
        if self._every is not None and update - self._saved_update >= self._every:
            return True
        if self._minutes is None:
            return False
        return time.monotonic() - self._saved_at >= 60 * self._minutes
