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
    """Where a run stands; replaced, never changed.

    Attributes:
        update: Updates made.
        outer_step: Outer steps made.
        cursors: Where each lane's scan stands, of all lanes.
        best: The best evaluation so far; None before the first.
        owes_evaluation: The run was asked to stop before it had evaluated this update.
    """

    update: int
    outer_step: int
    cursors: tuple[PoolCursor, ...]
    best: dict[str, Any] | None = None
    owes_evaluation: bool = False


@dataclass(frozen=True)
class UpdateReport:
    """What one update did; `skipped` when mixed precision overflowed and no weight moved."""

    loss: float
    learning_rate: float
    skipped: bool


# Updates in a row that mixed precision may skip: each halves a scale that begins at 65,536.
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
        self._autocast = autocast
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

    def text_encoder(self) -> TextEncoder:
        """The text tower as it is now: a copy that training does not move."""
        projected = self.config.text.project_embeddings
        return TextEncoder(
            copy.deepcopy(self.model.text_model),
            # Its own tokenizer too: a call sets padding and truncation inside it, and the thread
            # that writes shards embeds while this one trains.
            copy.deepcopy(self.tokenizer),
            max_text_length=self.config.text.max_text_length,
            projection=copy.deepcopy(self.model.text_projection) if projected else None,
            device=self.device,
            compiled=self.config.text.compile,
        )

    def step(
        self, batches: Sequence[LaneBatch], state: TrainState
    ) -> tuple[TrainState, UpdateReport]:
        """One update: the mean of the losses of `accumulate` global batches.

        Args:
            batches: One batch of each lane of this rank, `accumulate` times.
            state: Where the run stands.

        Returns:
            The state after the update, and what it did; the same on all ranks.

        Raises:
            NotFiniteError: A loss or the gradient is NaN or infinite, or mixed precision has
                skipped too many updates in a row; no weight has moved, on no rank.
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
        """The norm of all gradients, which `clip_grad` then limits."""
        parameters = trainable_parameters(self.model)
        if self.config.train.clip_grad is not None:
            limit = self.config.train.clip_grad
            return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        gradients = [each.grad for each in parameters if each.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _check_finite(
        self, losses: Sequence[float], norm: float, batches: Sequence[LaneBatch], update: int
    ) -> None:
        """Raise on all ranks alike where an update of one must not be made.

        Raises:
            NotFiniteError: See `step`.
        """
        # Mixed precision skips an update whose gradient overflows, and lowers its scale.
        is_sound = self.scaler.is_enabled() or math.isfinite(norm)
        lost = not is_sound or not all(map(math.isfinite, losses))
        is_stuck = self._num_skipped >= MAX_SKIPPED_IN_A_ROW
        if not any(self._world.any_of(lost, is_stuck)):
            return
        keys = [key for batch in batches for key in batch.pair_keys]
        what = f"the loss is {sum(losses) / len(losses)}, and the norm of its gradient {norm},"
        if is_stuck:
            what = f"{self._num_skipped} updates in a row have overflowed"
        raise NotFiniteError(
            f"{what} at update {update}; its pairs begin with {', '.join(keys[:3])}. "
            "Lower --lr, and go on from the last commit with --resume",
            keys,
        )

    def _backward(self, batches: Sequence[LaneBatch], update: int, part: int) -> float:
        """Add the gradient of one global batch, over all lanes' pairs; gives its loss."""
        train = self.config.train
        is_last = part == train.accumulate - 1
        if train.micro_batch is None or train.micro_batch >= self.config.curate.batch_size:
            if is_last:
                loss = self._loss_backward(*self._replica(batches, update, part))
            else:
                with self._replica.alone():
                    loss = self._loss_backward(*self._replica(batches, update, part))
        else:
            loss = cached_backward(
                self._towers,
                batches,
                self._loss_backward,
                update=update,
                part=part,
                micro_batch=train.micro_batch,
                autocast=self._autocast,
            )
            if is_last:
                self._replica.average()
        return loss

    def _loss_backward(self, images: Tensor, texts: Tensor, scale: Tensor) -> float:
        """Run the loss of the global batch backwards, from this rank's features; gives the loss.

        The ranks' gradients are averaged, and the average must be the gradient of the loss.
        """
        train, world = self.config.train, self._world
        is_local = train.local_loss and world.size > 1
        all_images = world.gather(images, through=is_local)
        all_texts = world.gather(texts, through=is_local)
        if world.size > 1 and not is_local:
            # Every rank finds the whole gradient of the scale, but a share of all others.
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
        """The rows of the logits that are computed at once; None = all.

        Only from leaves is a loss in several blocks cheap: else each would go through the towers.
        """
        first = self._world.rank * num_own if is_local else 0
        num_rows = num_own if is_local else num_own * self._world.size
        if not are_leaves:
            return [slice(first, first + num_rows)] if is_local else [None]
        size = self.config.curate.batch_size
        ends = range(first, first + num_rows, size)
        return [slice(start, min(start + size, first + num_rows)) for start in ends]
