"""BatchNorm of a frozen tower folded into the convolutions before it."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import PreTrainedModel

from cit_train.models.freeze import frozen_features


def folded_copy(tower: PreTrainedModel, pixels: Tensor) -> PreTrainedModel:
    """A copy of a tower with each BatchNorm folded into its convolution; without any, the tower.

    A BatchNorm belongs to the convolution whose output it receives in a forward pass. Features
    differ in their last bits.

    Args:
        tower: The vision tower, in eval mode.
        pixels: float32 [rows, 3, side, side], an example input.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules()):
        return tower
    copied = copy.deepcopy(tower)
    pairs = _pairs(copied, pixels)
    names = {module: name for name, module in copied.named_modules()}
    for norm, convolution in pairs.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        convolution.weight, convolution.bias = weight, bias
        # timm's BatchNorm has an activation of its own.
        rest = nn.Sequential(*(child for child in norm.children()))
        copied.set_submodule(names[norm], rest)
    return copied.requires_grad_(False)


@torch.no_grad()
def _pairs(tower: PreTrainedModel, pixels: Tensor) -> dict[nn.BatchNorm2d, nn.Conv2d]:
    """Each BatchNorm that receives a convolution's output, with that convolution."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # with the tensor, which keeps its id
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def convolved(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        outputs[id(output)] = (module, output)

    def normalised(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        if id(inputs[0]) in outputs:
            pairs[module] = outputs[id(inputs[0])][0]

    hooks = []
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(convolved))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(normalised))
    frozen_features(tower, pixels)
    for hook in hooks:
        hook.remove()
    return pairs
