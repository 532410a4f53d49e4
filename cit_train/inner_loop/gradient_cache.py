"""The gradient of a batch that does not fit: embed without a graph, then replay in chunks.

The loss needs the features of the whole batch, which are small; the towers' activations are what
does not fit. So features are computed first, without a graph; the loss gives their gradient; and
each chunk runs once more, with a graph and the same dropout, to carry it on to the parameters
(gradient caching, arXiv 2101.06983). Equal to the gradient of the chunks in one graph.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cit_train.inner_loop.lane_towers import LaneTowers
from cit_train.streaming.batches import LaneBatch

LossBackward = Callable[[Tensor, Tensor, Tensor], float]
"""Images, texts and logit scale to the loss, whose gradient is left in their `.grad`."""


@dataclass(frozen=True)
class _Piece:
    """What goes through the towers at once: rows of a lane's texts or images, or of both."""

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
    autocast: torch.dtype | None,
) -> float:
    """Add the gradient of one batch of each lane to the parameters.

    Args:
        towers: The model, in train mode.
        batches: One batch of each lane.
        backward: Runs the loss backwards, from features that are leaves.
        update: Updates made before this one.
        part: Which of the batches of this update.
        micro_batch: Rows of a chunk.
        autocast: As in the plain step.

    Returns:
        What `backward` returns: the loss.
    """
    device = towers.model.logit_scale.device.type
    pieces = list(_pieces(batches, micro_batch, with_images=towers.divides_images))
    frozen = [None if towers.trains_tower else towers.frozen(batch) for batch in batches]

    def run(piece: _Piece, *, moves: bool) -> tuple[Tensor | None, Tensor | None]:
        batch = batches[piece.lane]
        towers.seed(batch, update, part, piece.chunk)
        with torch.autocast(device, autocast, enabled=autocast is not None):
            texts = towers.texts(batch, piece.rows) if piece.texts else None
            images = None
            if piece.images:
                images = towers.images(batch, piece.rows, frozen[piece.lane], moves=moves)
        return images, texts

    with torch.no_grad():
        features = [run(piece, moves=True) for piece in pieces]
    # Pieces are in the order of their rows.
    sides = [[part for part in side if part is not None] for side in zip(*features, strict=True)]
    # float32 [lanes * batch, projection dim] each
    images, texts = (torch.cat(side).float().requires_grad_() for side in sides)
    scale = towers.model.logit_scale.detach().clone().requires_grad_()
    loss = backward(images, texts, scale)
    gradients = [
        iter(torch.split(whole.grad, [len(part) for part in side]))  # type: ignore[arg-type]
        for whole, side in zip((images, texts), sides, strict=True)
    ]
    for piece in pieces:
        for output, left in zip(run(piece, moves=False), gradients, strict=True):
            if output is not None:
                torch.autograd.backward(output, next(left).to(output.dtype))
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
