"""Learning rate and parameter groups of the inner loop (docs/method.md, "Inner loop")."""

import math
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer
from transformers import VisionTextDualEncoderModel

__all__ = ["learning_rate", "parameter_groups", "set_learning_rates"]

_PROJECTIONS = ("visual_projection", "text_projection")


def learning_rate(
    update: int, *, lr: float, min_lr: float, warmup_updates: float, max_updates: int
) -> float:
    """The rate of one update: a linear warm-up from 0, then half a cosine cycle down to `min_lr`.

    Args:
        update: The updates made before this one. Update 0 has rate 0, unless there is no warm-up.
        lr: The peak rate, reached at `warmup_updates`.
        min_lr: The rate at `max_updates`.
        warmup_updates: The length of the warm-up, possibly fractional, as `max_updates / 25` is.
        max_updates: The length of the training.

    Raises:
        ValueError: `update` is outside the training, or the warm-up is not shorter than it.
    """
    if not 0 <= warmup_updates < max_updates:
        raise ValueError(
            f"warmup_updates is {warmup_updates:g}; it must be at least 0 and below max_updates, "
            f"{max_updates}"
        )
    if not 0 <= update <= max_updates:
        raise ValueError(f"update is {update}; this training has updates 0 to {max_updates}")
    if update < warmup_updates:
        return lr * update / warmup_updates
    # The reference's order of operations, so that the last bit agrees.
    angle = math.pi * (update - warmup_updates) / (max_updates - warmup_updates)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(angle))


def parameter_groups(
    model: VisionTextDualEncoderModel,
    *,
    lr: float,
    text_lr: float | None = None,
    projection_lr: float | None = None,
    weight_decay: float = 0.2,
    projection_weight_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by tower and weight decay, for AdamW.

    1-dimensional parameters (biases, norms) have no weight decay; `logit_scale` is 0-dimensional
    and does. The groups are in the order text, vision, projection, each before its `-no-decay`
    counterpart, and their parameters in the order of the model.

    Args:
        model: The dual encoder; parameters that require no gradient are left out.
        lr: The peak rate of groups without a rate of their own.
        text_lr: The peak rate of the text tower; None = `lr`.
        projection_lr: The peak rate of the two projections and `logit_scale`; None = `lr`.
        weight_decay: The weight decay of everything but the projections.
        projection_weight_decay: The weight decay of the two projections.

    Returns:
        Dictionaries with `name`, `params`, `weight_decay` and `lr_scale` (the group's peak rate
        divided by `lr`, see `set_learning_rates`); no group is empty.

    Raises:
        ValueError: `lr` is not positive, or nothing is trainable.
    """
    if lr <= 0:
        raise ValueError(
            f"lr is {lr:g}; it must be positive, since each group's rate is scaled by it"
        )
    decays = {
        "text": weight_decay,
        "vision": weight_decay,
        "projection": projection_weight_decay,
        "logit-scale": weight_decay,
    }
    rates = {"text": text_lr, "projection": projection_lr, "logit-scale": projection_lr}
    groups: dict[str, dict[str, Any]] = {}
    for part, decay in decays.items():
        rate = rates.get(part)
        lr_scale = 1.0 if rate is None else rate / lr
        for name, group_decay in ((part, decay), (f"{part}-no-decay", 0.0)):
            groups[name] = {
                "name": name,
                "params": [],
                "weight_decay": group_decay,
                "lr_scale": lr_scale,
            }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group_name(name, parameter)]["params"].append(parameter)
    filled = [group for group in groups.values() if group["params"]]
    if not filled:
        raise ValueError("no parameter of the model requires a gradient; nothing would be trained")
    return filled


def set_learning_rates(optimizer: Optimizer, rate: float) -> None:
    """Set each parameter group's rate to `rate` times its `lr_scale` (1 where it has none).

    Args:
        optimizer: An optimizer over `parameter_groups`, modified in place.
        rate: The rate from `learning_rate`.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def _group_name(name: str, parameter: Parameter) -> str:
    top = name.split(".", 1)[0]
    if top == "logit_scale":
        part = "logit-scale"
    elif top in _PROJECTIONS:
        part = "projection"
    else:
        part = "text" if top == "text_model" else "vision"
    return f"{part}-no-decay" if parameter.ndim == 1 else part
