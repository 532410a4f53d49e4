"""The inner loop: one update on one batch of every lane."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin, VisionTextDualEncoderModel

from cit_curate.errors import NotFiniteError
from cit_curate.records import PoolCursor
from cit_curate.storage.vector_cache import VectorCache
from cit_curate.text_encoder.encoder import TextEncoder
from cit_train.config import RunConfig
from cit_train.inner_loop.features import FeatureCache
from cit_train.inner_loop.gradient_cache import cached_backward
from cit_train.inner_loop.lane_towers import LaneTowers
from cit_train.inner_loop.losses import contrastive_loss
from cit_train.inner_loop.optim import learning_rate, parameter_groups, set_learning_rates
from cit_train.inner_loop.replica import Replica
from cit_train.models.freeze import set_train_mode, trainable_parameters
from cit_train.models.pooled_vision import PooledVision
from cit_train.ranks.world import World
from cit_train.streaming.batches import LaneBatch


@dataclass(frozen=True)
class TrainState:
    """The progress of a run; replaced, never modified.

    Attributes:
        update: The updates made.
        outer_step: The outer steps made.
        cursors: The scan cursors of all lanes.
        best: The best evaluation so far; None before the first.
        owes_evaluation: Whether the run was stopped before it had evaluated this update.
    """

    update: int
    outer_step: int
    cursors: tuple[PoolCursor, ...]
    best: dict[str, Any] | None = None
    owes_evaluation: bool = False


@dataclass(frozen=True)
class UpdateReport:
    """The result of one update; `skipped` when mixed precision overflowed and no weight changed."""

    loss: float
    learning_rate: float
    skipped: bool


# Updates in a row that mixed precision may skip: each halves a loss scale that starts at 65,536.
MAX_SKIPPED_IN_A_ROW = 50


class Trainer:
    """Owns the model, the optimizer and the gradient scaler."""

    def __init__(
        self,
        config: RunConfig,
        model: VisionTextDualEncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        processor: ProcessorMixin,
        vision: PooledVision,
        cache: FeatureCache | None,
        *,
        world: World,
        autocast: torch.dtype | None = None,
    ) -> None:
        train = config.train
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.device = vision.device
        self.cache = cache
        self._world = world
        self.optimizer = torch.optim.AdamW(
            parameter_groups(
                model,
                lr=train.lr,
                text_lr=train.text_lr,
                projection_lr=train.projection_lr,
                weight_decay=train.weight_decay,
                projection_weight_decay=train.projection_weight_decay,
            ),
            lr=train.lr,
            eps=1e-8,
            fused=train.fused_adamw or None,  # None = torch's choice for the device
        )
        is_scaled = autocast == torch.float16  # bfloat16 has the range of float32
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=is_scaled)
        self._num_skipped = 0  # updates in a row
        self._towers = LaneTowers(config, model, tokenizer, vision, cache, autocast=autocast)
        self._replica = Replica(self._towers, world)

    def text_encoder(self, kept: VectorCache | None = None) -> TextEncoder:
        """A copy of the current text tower, which training does not change.

        Args:
            kept: See `TextEncoder`.
        """
        projected = self.config.text.project_embeddings
        return TextEncoder(
            copy.deepcopy(self.model.text_model),
            # The tokenizer is copied too: a call sets padding and truncation inside it, and the
            # thread that writes shards embeds captions while this one trains.
            copy.deepcopy(self.tokenizer),
            max_text_length=self.config.text.max_text_length,
            projection=copy.deepcopy(self.model.text_projection) if projected else None,
            device=self.device,
            compiled=self.config.text.compile,
            kept=kept,
        )

    def step(
        self, batches: Sequence[LaneBatch], state: TrainState
    ) -> tuple[TrainState, UpdateReport]:
        """Make one update on the mean loss of `accumulate` global batches.

        Args:
            batches: One batch of each lane of this rank, `accumulate` times.
            state: The state before the update.

        Returns:
            The state after the update and its report, the same on all ranks.

        Raises:
            NotFiniteError: A loss or the gradient is NaN or infinite, or mixed precision has
                skipped too many updates in a row. No weight has changed on any rank.
        """
        train = self.config.train
        rate = learning_rate(
            state.update,
            lr=train.lr,
            min_lr=train.min_lr,
            warmup_updates=train.warmup_updates,
            max_updates=train.max_updates,
        )
        set_learning_rates(self.optimizer, rate)
        set_train_mode(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        lanes = len(batches) // train.accumulate
        losses = [
            self._backward(batches[part * lanes : (part + 1) * lanes], state.update, part)
            for part in range(train.accumulate)
        ]
        if train.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self._gradient_norm()
        self._check_finite(losses, norm, batches, state.update)
        scale_before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.is_enabled() and self.scaler.get_scale() < scale_before
        self._num_skipped = self._num_skipped + 1 if skipped else 0
        report = UpdateReport(sum(losses) / len(losses), rate, skipped)
        return replace(state, update=state.update + 1), report

    def _gradient_norm(self) -> float:
        """The norm of all gradients, before `clip_grad` limits it."""
        parameters = trainable_parameters(self.model)
        if self.config.train.clip_grad is not None:
            limit = self.config.train.clip_grad
            return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _check_finite(
        self, losses: Sequence[float], norm: float, batches: Sequence[LaneBatch], update: int
    ) -> None:
        """Raise on all ranks when the update of one of them must not be made.

        Raises:
            NotFiniteError: See `step`.
        """
        # Mixed precision skips an update whose gradient overflows, and lowers its scale.
        norm_is_fine = self.scaler.is_enabled() or math.isfinite(norm)
        is_broken = not norm_is_fine or not all(map(math.isfinite, losses))
        is_stuck = self._num_skipped >= MAX_SKIPPED_IN_A_ROW
        if not any(self._world.any_of(is_broken, is_stuck)):
            return
        keys = [key for batch in batches for key in batch.pair_keys]
        reason = f"the loss is {sum(losses) / len(losses)}, and the norm of its gradient {norm},"
        if is_stuck:
            reason = f"{self._num_skipped} updates in a row have overflowed"
        raise NotFiniteError(
            f"{reason} at update {update}; its pairs begin with {', '.join(keys[:3])}. "
            "Lower --lr, and resume from the last commit with --resume",
            keys,
        )

    def _backward(self, batches: Sequence[LaneBatch], update: int, part: int) -> float:
        """Add the gradient of one global batch, over all lanes' pairs, and return its loss."""
        train = self.config.train
        is_last = part == train.accumulate - 1
        if train.micro_batch is None or train.micro_batch >= self.config.curate.batch_size:
            if is_last:
                loss = self._loss_backward(*self._replica(batches, update, part))
            else:
                with self._replica.without_averaging():
                    loss = self._loss_backward(*self._replica(batches, update, part))
        else:
            loss = cached_backward(
                self._towers,
                batches,
                self._loss_backward,
                update=update,
                part=part,
                micro_batch=train.micro_batch,
            )
            if is_last:
                self._replica.average()
        return loss

    def _loss_backward(self, images: Tensor, texts: Tensor, scale: Tensor) -> float:
        """Backpropagate the loss of the global batch to this rank's features, and return the loss.

        The ranks' gradients are averaged, and the average must be the gradient of the loss.
        """
        train, world = self.config.train, self._world
        is_local = train.local_loss and world.size > 1
        all_images = world.gather(images, through=is_local)
        all_texts = world.gather(texts, through=is_local)
        if world.size > 1 and not is_local:
            # Each rank has the whole gradient of the scale, but only a share of every other.
            scale = scale.detach() + (scale - scale.detach()) / world.size
        total = 0.0
        blocks = self._row_blocks(len(images), is_local=is_local, are_leaves=images.is_leaf)
        for number, rows in enumerate(blocks, 1):
            loss = contrastive_loss(all_images, all_texts, scale, loss=train.loss, rows=rows)
            total += float(loss.detach())
            scaled = self.scaler.scale(loss * world.size / train.accumulate)
            scaled.backward(retain_graph=number < len(blocks))  # type: ignore[no-untyped-call]
        return world.sum(total) if is_local else total

    def _row_blocks(
        self, num_own: int, *, is_local: bool, are_leaves: bool
    ) -> Sequence[slice | None]:
        """The blocks of rows of the logits that are computed together; None = all rows.

        A loss in several blocks is cheap only from leaves: else each would backpropagate through
        the towers.
        """
        first = self._world.rank * num_own if is_local else 0
        num_rows = num_own if is_local else num_own * self._world.size
        if not are_leaves:
            return [slice(first, first + num_rows)] if is_local else [None]
        size = self.config.curate.batch_size
        ends = range(first, first + num_rows, size)
        return [slice(start, min(start + size, first + num_rows)) for start in ends]
