"""Views that worker processes pass to the trainer in shared memory, which is used again.

Fresh shared memory costs a worker more than filling it (a page fault for every 4 KB), and each time
that it is passed on, two processes connect, and the other one maps it. So a worker keeps its
buffers, passes each one on once, and names it by its number from then on.
"""

import weakref
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cit_curate.records import UInt8


@dataclass(frozen=True)
class ViewBuffer:
    """The memory of one batch of views, in two processes.

    Attributes:
        worker: The number of the worker that owns it.
        number: Its number among the buffers of the worker.
        num_views: The number of views.
        side: The side of a view, in pixels.
        memory: uint8 [num_views * side * side * 3 + 1], shared. The last byte is 1 from when the
            worker takes the buffer until nothing in the trainer refers to its views. None = this
            process has it already.
    """

    worker: int
    number: int
    num_views: int
    side: int
    memory: Tensor | None

    @property
    def is_free(self) -> bool:
        """Whether the worker may take the buffer."""
        return not self._bytes()[-1]

    def take(self) -> None:
        """Mark the buffer as used, in both processes."""
        self._bytes()[-1] = 1

    def free(self) -> None:
        """Mark the buffer as free, in both processes."""
        self._bytes()[-1] = 0

    def pixels(self) -> UInt8:
        """uint8 [num_views, side, side, 3]."""
        return self._bytes()[:-1].reshape((self.num_views, self.side, self.side, 3))

    def views(self) -> Tensor:
        """uint8 [num_views, 3, side, side]; the buffer is free once nothing refers to them."""
        pixels = self.pixels()
        # The memory of the tensor, and of all slices of it, keeps this array alive.
        weakref.finalize(pixels, self.free).atexit = False
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _bytes(self) -> UInt8:
        assert self.memory is not None
        memory: UInt8 = self.memory.numpy()
        return memory


class WorkerBuffers:
    """The buffers of one worker: as many as it has batches under way at once."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._buffers: list[ViewBuffer] = []

    def take(self, num_views: int, side: int) -> tuple[ViewBuffer, bool]:
        """A buffer for views, always of the same size, and whether the trainer does not know it."""
        for buffer in self._buffers:
            if buffer.is_free:
                buffer.take()
                return buffer, False
        memory = torch.empty(num_views * side**2 * 3 + 1, dtype=torch.uint8)
        memory.share_memory_()  # type: ignore[no-untyped-call]
        buffer = ViewBuffer(self._worker, len(self._buffers), num_views, side, memory)
        buffer.take()
        self._buffers.append(buffer)
        return buffer, True


class ReceivedBuffers:
    """The buffers of all workers, as the trainer knows them."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, int], Tensor] = {}

    def known(self, buffer: ViewBuffer) -> ViewBuffer:
        """A buffer that has arrived, with its memory."""
        key = (buffer.worker, buffer.number)
        if buffer.memory is not None:
            self._memory[key] = buffer.memory
        return replace(buffer, memory=self._memory[key])
