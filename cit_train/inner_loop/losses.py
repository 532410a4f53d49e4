"""The contrastive losses of the inner loop (docs/method.md, "Inner loop")."""

import torch
from torch import Tensor
from torch.nn import functional

from cit_train.config import Loss


def contrastive_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, *, loss: Loss, rows: slice | None = None
) -> Tensor:
    """The cross-entropy of the scaled cosines, where row i of one side matches row i of the other.

    Both sides are L2-normalised here. Everything is computed in float32, even under autocast.

    Args:
        image: float [batch, dim], projected image features of any norm.
        text: float [batch, dim], projected text features of any norm.
        logit_scale: float [], the logarithm of the factor on the cosines.
        loss: `cit` is image→text only; `clip` is the mean of both directions.
        rows: The rows whose share of the batch mean is returned, from [rows, batch] logits; the
            shares of all rows add up to the loss of the batch. None = all rows.

    Returns:
        float32 [], in nats.

    Raises:
        ValueError: The sides differ in shape, or `loss` has another value.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image features are {tuple(image.shape)} and text features {tuple(text.shape)}; "
            "both must be [batch, dim], one text for each image"
        )
    if loss not in ("cit", "clip"):
        raise ValueError(f"loss is {loss!r}; it is cit or clip")
    with torch.autocast(image.device.type, enabled=False):
        image = functional.normalize(image.float(), dim=-1)
        text = functional.normalize(text.float(), dim=-1)
        scale = logit_scale.float().exp()
        targets = torch.arange(len(image), device=image.device)
        if rows is not None:
            own = targets[rows]
            total = functional.cross_entropy(scale * image[rows] @ text.T, own, reduction="sum")
            if loss == "clip":
                text_logits = scale * text[rows] @ image.T
                total = (total + functional.cross_entropy(text_logits, own, reduction="sum")) / 2
            return total / len(image)
        # logits: float32 [batch images, batch texts]
        logits = scale * image @ text.T
        image_to_text = functional.cross_entropy(logits, targets)
        if loss == "cit":
            return image_to_text
        return (image_to_text + functional.cross_entropy(logits.T, targets)) / 2
