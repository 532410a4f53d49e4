"""From a lane's batch to projected images and texts: the part of an update local to a rank.

A lane is the unit of the forward pass: dropout is seeded by (seed, update, lane), and BatchNorm
sees one lane (docs/method.md, "Inner loop"). So the result for a lane does not depend on which
other lanes its rank has.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from cit_curate.text_encoder.tokenizer import tokenize
from cit_train.config import RunConfig
from cit_train.inner_loop.features import FeatureCache
from cit_train.inner_loop.text_buckets import length_buckets
from cit_train.models.freeze import (
    has_batch_norm,
    running_statistics,
    trains_vision_tower,
    with_head,
)
from cit_train.models.pooled_vision import PooledVision
from cit_train.streaming.batches import LaneBatch

# First words of the random keys of an update.
DROPOUT_KEY = 51
VIEW_CHOICE_KEY = 52

Sides = tuple[Tensor, Tensor]


class LaneTowers(nn.Module):
    """Both towers and projections of the model, lane by lane."""

    def __init__(
        self,
        config: RunConfig,
        model: VisionTextDualEncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        vision: PooledVision,
        cache: FeatureCache | None,
        *,
        autocast: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.trains_tower = trains_vision_tower(model)
        self._config = config
        self._tokenizer = tokenizer
        self._vision = vision
        self._cache = cache
        self._autocast = autocast
        # In a list, so that it is not registered as a submodule: its weights are those of `model`.
        text = model.text_model
        self._text = [torch.compile(text, dynamic=True) if config.text.compile else text]

    def forward(
        self, batches: Sequence[LaneBatch], update: int, part: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projected images and texts of several lanes, and the logit scale.

        Args:
            batches: One batch per lane.
            update: The updates made before this one.
            part: The index of this batch among the `accumulate` batches of the update.

        Returns:
            float32 [lanes * batch, projection dim] twice, and float [].
        """
        lanes = [self._lane(batch, update, part) for batch in batches]
        images = torch.cat([image for image, _ in lanes]).float()
        texts = torch.cat([text for _, text in lanes]).float()
        # A clone: a gradient that is modified on its way back must not be the parameter's own.
        return images, texts, self.model.logit_scale.clone()

    def _lane(self, batch: LaneBatch, update: int, part: int) -> Sides:
        rows = slice(0, len(batch.captions))
        self.seed(batch, update, part)
        with self.autocast():
            texts = self.texts(batch, rows)
            images = self.images(batch, rows, None if self.trains_tower else self.frozen(batch))
        return images, texts

    def autocast(self) -> torch.autocast:
        """The context of a forward pass in mixed precision; without effect in float32."""
        is_mixed = self._autocast is not None
        return torch.autocast(self._vision.device.type, self._autocast, enabled=is_mixed)

    def seed(self, batch: LaneBatch, update: int, part: int, chunk: int = 0) -> None:
        """Seed dropout for this chunk of this lane's batch."""
        # Each part of an update and each chunk of a batch draws its own dropout.
        key = (update, batch.lane, *((part,) if part or chunk else ()), *((chunk,) * bool(chunk)))
        seed = np.random.SeedSequence((self._config.curate.seed, DROPOUT_KEY, *key))
        torch.manual_seed(int(seed.generate_state(1)[0]))

    def texts(self, batch: LaneBatch, rows: slice) -> Tensor:
        """Projected captions: float [rows, projection dim]."""
        tokens = tokenize(
            self._tokenizer,
            batch.captions[rows],
            max_text_length=self._config.text.max_text_length,
        )
        pooled = self._pooled_texts(tokens["input_ids"], tokens["attention_mask"])
        projected: Tensor = self.model.text_projection(pooled)
        return projected

    def _pooled_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled captions, in `text_buckets` passes of similar length: float [rows, width]."""
        num_buckets = self._config.train.text_buckets
        if num_buckets == 1:
            return self._text_pass(ids, mask)
        lengths = mask.sum(1)
        buckets = length_buckets(lengths.numpy(), num_buckets)
        parts = []
        for bucket in map(torch.from_numpy, buckets):
            longest = int(lengths[bucket].max())
            parts.append(self._text_pass(ids[bucket, :longest], mask[bucket, :longest]))
        order = torch.from_numpy(np.argsort(np.concatenate(buckets)))
        return torch.cat(parts)[order.to(self._vision.device)]

    def _text_pass(self, ids: Tensor, mask: Tensor) -> Tensor:
        pooled: Tensor = self._text[0](
            input_ids=self._to_device(ids), attention_mask=self._to_device(mask)
        ).pooler_output
        return pooled

    def _to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on the tower's device; a copy to a GPU does not block the CPU."""
        device = self._vision.device
        if device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    def images(
        self,
        batch: LaneBatch,
        rows: slice,
        frozen: Tensor | None,
        *,
        update_statistics: bool = True,
    ) -> Tensor:
        """Projected images: float [rows, projection dim].

        Args:
            batch: The batch of one lane.
            rows: The rows of the images to project.
            frozen: The output of the frozen part for the whole batch; None when the tower is
                trained.
            update_statistics: Whether lane 0 updates the running statistics of BatchNorm; other
                lanes never do.
        """
        update = update_statistics and batch.lane == 0
        with running_statistics(self.model.vision_model, update=update):
            if frozen is not None:
                features = self._to_device(frozen[rows])
                pooled = with_head(self.model.vision_model, features)
            else:
                pixels = self._vision.pixels(_views(batch)[rows])
                pooled = self.model.vision_model(pixel_values=pixels).pooler_output.flatten(1)
        projected: Tensor = self.model.visual_projection(pooled)
        return projected

    def frozen(self, batch: LaneBatch) -> Tensor:
        """The output of the frozen part of the vision tower: float32 [batch, width], no gradient.

        It is on the tower's device, unless it comes from the cache.
        """
        if self._cache is None:
            return self._vision.on_device(_views(batch))
        seed = self._config.curate.seed
        key = (seed, VIEW_CHOICE_KEY, batch.outer_step, batch.lane, batch.start)
        views = np.random.default_rng(key).integers(self._cache.num_views, size=len(batch.images))
        return self._cache.features(batch.images, views.tolist())

    @property
    def can_split_images(self) -> bool:
        """Whether a batch of images may be split; BatchNorm in train mode needs a whole lane."""
        return not has_batch_norm(self.model.vision_model)


def _views(batch: LaneBatch) -> Tensor:
    if batch.views is None:
        raise ValueError("a batch without crops needs cached features")
    return batch.views
