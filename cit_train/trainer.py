"""The inner loop: one update on one batch of every lane."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from cit_curate.errors import NotFiniteError
from cit_curate.records import PoolCursor
from cit_curate.text_encoder import TextEncoder, tokenize
from cit_train.batches import LaneBatch
from cit_train.config import RunConfig
from cit_train.features import FeatureCache
from cit_train.losses import contrastive_loss
from cit_train.models.freeze import (
    running_statistics,
    set_train_mode,
    trainable_parameters,
    trains_vision_tower,
    with_head,
)
from cit_train.optim import learning_rate, parameter_groups, set_learning_rates
from cit_train.pooled_vision import PooledVision

# First words of the random keys of an update.
DROPOUT_KEY = 51
VIEW_CHOICE_KEY = 52


@dataclass(frozen=True)
class TrainState:
    """Where a run stands; replaced, never changed.

    Attributes:
        update: Updates made.
        outer_step: Outer steps made.
        cursors: Where each lane's scan stands.
    """

    update: int
    outer_step: int
    cursors: tuple[PoolCursor, ...]


@dataclass(frozen=True)
class UpdateReport:
    """What one update did; `skipped` when mixed precision overflowed and no weight moved."""

    loss: float
    learning_rate: float
    skipped: bool


class Trainer:
    """Owns the model, the optimizer and the gradient scaler."""

    def __init__(
        self,
        config: RunConfig,
        model: VisionTextDualEncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        vision: PooledVision,
        cache: FeatureCache | None,
        *,
        mixed: bool = False,
    ) -> None:
        train = config.train
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.device = vision.device
        self.cache = cache
        self._vision = vision
        self._trains_tower = trains_vision_tower(model)
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
        )
        self.mixed = mixed
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.mixed)

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
        )

    def step(
        self, batches: Sequence[LaneBatch], state: TrainState
    ) -> tuple[TrainState, UpdateReport]:
        """One update: the mean of the losses of `accumulate` global batches.

        Args:
            batches: One batch of each lane, `accumulate` times.
            state: Where the run stands.

        Returns:
            The state after the update, and what it did.

        Raises:
            NotFiniteError: A loss is NaN or infinite.
        """
        train, lanes = self.config.train, self.config.curate.lanes
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
        losses = [
            self._backward(batches[first : first + lanes], state.update, first // lanes)
            for first in range(0, len(batches), lanes)
        ]
        if train.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(trainable_parameters(self.model), train.clip_grad)
        scale_before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.mixed and self.scaler.get_scale() < scale_before
        report = UpdateReport(sum(losses) / len(losses), rate, skipped)
        return replace(state, update=state.update + 1), report

    def _backward(self, batches: Sequence[LaneBatch], update: int, part: int) -> float:
        """Add the gradient of one global batch, over all lanes' pairs; gives its loss."""
        train = self.config.train
        with torch.autocast(self.device.type, torch.float16, enabled=self.mixed):
            sides = [self._embed(batch, update, part) for batch in batches]
        # images, texts: float32 [lanes * batch, projection dim]
        images = torch.cat([image for image, _ in sides]).float()
        texts = torch.cat([text for _, text in sides]).float()
        loss = contrastive_loss(images, texts, self.model.logit_scale, loss=train.loss)
        if not torch.isfinite(loss):
            keys = [key for batch in batches for key in batch.pair_keys]
            raise NotFiniteError(
                f"the loss is {loss.item()} at update {update}; its pairs begin with "
                f"{', '.join(keys[:3])}. Lower --lr, and go on from the last commit with --resume"
            )
        scaled = self.scaler.scale(loss / train.accumulate)
        scaled.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _embed(self, batch: LaneBatch, update: int, part: int) -> tuple[Tensor, Tensor]:
        """One lane's images and texts, projected: float [batch, projection dim] each."""
        # A lane's parts of one update draw their own dropout.
        key = (update, batch.lane, part) if part else (update, batch.lane)
        seed = np.random.SeedSequence((self.config.curate.seed, DROPOUT_KEY, *key))
        torch.manual_seed(int(seed.generate_state(1)[0]))
        tokens = tokenize(
            self.tokenizer, batch.captions, max_text_length=self.config.text.max_text_length
        )
        pooled_text = self.model.text_model(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        ).pooler_output
        with running_statistics(self.model.vision_model, update=batch.lane == 0):
            pooled_images = self._pooled_images(batch)
        return self.model.visual_projection(pooled_images), self.model.text_projection(pooled_text)

    def _pooled_images(self, batch: LaneBatch) -> Tensor:
        """Pooled images of a batch: float [batch, vision dim], with the gradient of what trains."""
        if self._trains_tower:
            if batch.views is None:
                raise ValueError("a batch without crops needs cached features")
            pixels = self._vision.pixels(batch.views)
            output: Tensor = self.model.vision_model(pixel_values=pixels).pooler_output.flatten(1)
            return output
        return with_head(self.model.vision_model, self._frozen(batch).to(self.device))

    def _frozen(self, batch: LaneBatch) -> Tensor:
        """Output of the frozen part of the vision tower: float32 [batch, width]."""
        if self.cache is None:
            if batch.views is None:
                raise ValueError("a batch without crops needs cached features")
            return self._vision(batch.views)
        key = (self.config.curate.seed, VIEW_CHOICE_KEY, batch.outer_step, batch.lane, batch.start)
        rng = np.random.default_rng(key)
        views = rng.integers(self.cache.num_views, size=len(batch.images)).tolist()
        return self.cache.features(batch.images, views)
