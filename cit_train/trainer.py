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
from cit_train.models.dual_encoder import set_train_mode
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
        return TextEncoder(
            copy.deepcopy(self.model.text_model),
            # Its own tokenizer too: a call sets padding and truncation inside it, and the thread
            # that writes shards embeds while this one trains.
            copy.deepcopy(self.tokenizer),
            max_text_length=self.config.text.max_text_length,
            device=self.device,
        )

    def step(
        self, batches: Sequence[LaneBatch], state: TrainState
    ) -> tuple[TrainState, UpdateReport]:
        """One update on the global batch: the loss is over all lanes' pairs.

        Args:
            batches: One batch of each lane.
            state: Where the run stands.

        Returns:
            The state after the update, and what it did.

        Raises:
            NotFiniteError: The loss is NaN or infinite.
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
        with torch.autocast(self.device.type, torch.float16, enabled=self.mixed):
            sides = [self._embed(batch, state.update) for batch in batches]
        # images, texts: float32 [lanes * batch, projection dim]
        images = torch.cat([image for image, _ in sides]).float()
        texts = torch.cat([text for _, text in sides]).float()
        loss = contrastive_loss(images, texts, self.model.logit_scale, loss=train.loss)
        if not torch.isfinite(loss):
            keys = [key for batch in batches for key in batch.pair_keys]
            raise NotFiniteError(
                f"the loss is {loss.item()} at update {state.update}; its pairs begin with "
                f"{', '.join(keys[:3])}. Lower --lr, and go on from the last commit with --resume"
            )
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scale_before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.mixed and self.scaler.get_scale() < scale_before
        report = UpdateReport(float(loss.detach()), rate, skipped)
        return replace(state, update=state.update + 1), report

    def _embed(self, batch: LaneBatch, update: int) -> tuple[Tensor, Tensor]:
        """One lane's images and texts, projected: float [batch, projection dim] each."""
        seed = (self.config.curate.seed, DROPOUT_KEY, update, batch.lane)
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        tokens = tokenize(
            self.tokenizer, batch.captions, max_text_length=self.config.text.max_text_length
        )
        pooled_text = self.model.text_model(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        ).pooler_output
        pooled_images = self._pooled(batch).to(self.device)
        return self.model.visual_projection(pooled_images), self.model.text_projection(pooled_text)

    def _pooled(self, batch: LaneBatch) -> Tensor:
        """Pooled images of a batch: float32 [batch, vision dim]."""
        if self.cache is None:
            if batch.views is None:
                raise ValueError("a batch without crops needs cached features")
            return self._vision(batch.views)
        key = (self.config.curate.seed, VIEW_CHOICE_KEY, batch.outer_step, batch.lane, batch.start)
        rng = np.random.default_rng(key)
        views = rng.integers(self.cache.num_views, size=len(batch.images)).tolist()
        return self.cache.features(batch.images, views)
