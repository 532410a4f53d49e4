"""The gradient of a batch too large for memory: one pass without a graph, then one in chunks.

The loss needs the features of the whole batch, which are small; it is the towers' activations that
do not fit. So all features are first computed without a graph, and the loss yields their gradient.
Then each chunk runs again, with a graph and the same dropout, and carries that gradient back to the
parameters (gradient caching, arXiv 2101.06983). The result equals the gradient of one graph over
the same chunks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cit_train.inner_loop.lane_towers import LaneTowers
from cit_train.streaming.batches import LaneBatch

LossBackward = Callable[[Tensor, Tensor, Tensor], float]
"""The loss of images, texts and a logit scale, whose gradient is left in their `.grad`."""


@dataclass(frozen=True)
class _Piece:
    """One forward pass: rows of a lane's texts, of its images, or of both."""

    lane: int
    chunk: int
    rows: slice
    texts: bool
    images: bool


def cached_backward(
    towers: LaneTowers,
    batches: Sequence[LaneBatch],
    backward: LossBackward,
    *,
    update: int,
    part: int,
    micro_batch: int,
) -> float:
    """Add the gradient of one batch of each lane to the parameters.

    Args:
        towers: The model, in train mode.
        batches: One batch per lane.
        backward: The backward pass of the loss, from features that are leaves.
        update: The updates made before this one.
        part: The index of this batch among the `accumulate` batches of the update.
        micro_batch: The rows of a chunk.

    Returns:
        The loss.
    """
    pieces = list(_pieces(batches, micro_batch, with_images=towers.can_split_images))
    frozen = [None if towers.trains_tower else towers.frozen(batch) for batch in batches]

    def run(piece: _Piece, *, update_statistics: bool) -> tuple[Tensor | None, Tensor | None]:
        batch = batches[piece.lane]
        towers.seed(batch, update, part, piece.chunk)
        with towers.autocast():
            texts = towers.texts(batch, piece.rows) if piece.texts else None
            images = None
            if piece.images:
                images = towers.images(
                    batch,
                    piece.rows,
                    frozen[piece.lane],
                    update_statistics=update_statistics,
                )
        return images, texts

    with torch.no_grad():
        passes = [run(piece, update_statistics=True) for piece in pieces]
    # Pieces come in the order of their rows.
    sides = [[part for part in side if part is not None] for side in zip(*passes, strict=True)]
    # float32 [lanes * batch, projection dim] each
    images, texts = (torch.cat(side).float().requires_grad_() for side in sides)
    scale = towers.model.logit_scale.detach().clone().requires_grad_()
    loss = backward(images, texts, scale)
    gradients = [
        iter(torch.split(features.grad, [len(part) for part in side]))  # type: ignore[arg-type]
        for features, side in zip((images, texts), sides, strict=True)
    ]
    for piece in pieces:
        outputs = run(piece, update_statistics=False)
        for output, remaining in zip(outputs, gradients, strict=True):
            if output is not None:
                torch.autograd.backward(output, next(remaining).to(output.dtype))
    parameter = towers.model.logit_scale
    if parameter.requires_grad and scale.grad is not None:
        parameter.grad = scale.grad if parameter.grad is None else parameter.grad + scale.grad
    return loss


def _pieces(
    batches: Sequence[LaneBatch], micro_batch: int, *, with_images: bool
) -> Iterator[_Piece]:
    for lane, batch in enumerate(batches):
        num_rows = len(batch.captions)
        chunk = -1
        for chunk, start in enumerate(range(0, num_rows, micro_batch)):
            rows = slice(start, min(start + micro_batch, num_rows))
            yield _Piece(lane, chunk, rows, texts=True, images=with_images)
        if not with_images:
            yield _Piece(lane, chunk + 1, slice(0, num_rows), texts=False, images=True)
