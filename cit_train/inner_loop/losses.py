"""The contrastive losses of the inner loop (docs/method.md, "Inner loop")."""

import torch
from torch import Tensor
from torch.nn import functional

from cit_train.config import Loss


def contrastive_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, *, loss: Loss, rows: slice | None = None
) -> Tensor:
    """Cross-entropy of the scaled cosines; row i of one side belongs to row i of the other.

    Both sides are L2-normalised here, so that projections may come as they are, and everything is
    computed in float32, also under autocast.

    Args:
        image: float [batch, dim], projected image features of any norm.
        text: float [batch, dim], projected text features of any norm.
        logit_scale: float [], logarithm of the factor on the cosines.
        loss: `cit` finds the text of each image (image→text only); `clip` is the mean of both
            directions.
        rows: Only what these rows add to the mean over the batch, for which [rows, batch] logits
            are enough; the parts of all rows sum up to the loss of the batch.

    Returns:
        float32 [], in nats.

    Raises:
        ValueError: The sides differ in shape, or the loss has another name.
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
        own = torch.arange(len(image), device=image.device)
        if rows is not None:
            part = own[rows]
            total = functional.cross_entropy(scale * image[rows] @ text.T, part, reduction="sum")
            if loss == "clip":
                back = scale * text[rows] @ image.T
                total = (total + functional.cross_entropy(back, part, reduction="sum")) / 2
            return total / len(image)
        # logits: float32 [batch images, batch texts]
        logits = scale * image @ text.T
        image_to_text = functional.cross_entropy(logits, own)
        if loss == "cit":
            return image_to_text
        return (image_to_text + functional.cross_entropy(logits.T, own)) / 2
