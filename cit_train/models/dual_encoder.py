"""The trained model: two towers, two projections, one logit scale."""

import copy
import math

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from cit_train.models.image_processor import make_image_processor
from cit_train.models.released import accept_old_buffers
from cit_train.transforms import ImageStatistics


def build_dual_encoder(
    vision: PreTrainedModel, text: PreTrainedModel, *, projection_dim: int, seed: int
) -> VisionTextDualEncoderModel:
    """A dual encoder with fresh projections; `freeze` selects the trained parameters.

    The projections start as U(-1/sqrt(in), 1/sqrt(in)), like `nn.Linear` in the version of
    transformers used in the paper; today's version starts them as N(0, 0.02). The logit scale
    starts at 2.6592.
    """
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=projection_dim
    )
    model = VisionTextDualEncoderModel(config=config, vision_model=vision, text_model=text)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for projection in (model.visual_projection, model.text_projection):
            bound = 1 / math.sqrt(projection.in_features)
            drawn = torch.rand(projection.weight.shape, generator=generator)
            projection.weight.copy_((2 * drawn - 1) * bound)
    accept_old_buffers(model)
    return model


def make_processor(
    tokenizer: PreTrainedTokenizerBase, statistics: ImageStatistics, *, max_text_length: int
) -> VisionTextDualEncoderProcessor:
    """A processor that prepares images and captions exactly as our evaluation does."""
    # A copy without the settings of the last call, so that the saved files do not depend on them.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_text_length
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return VisionTextDualEncoderProcessor(make_image_processor(statistics), tokenizer)
