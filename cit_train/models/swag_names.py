"""SWAG's tensor names, and timm's names for the same tensors (docs/vision-towers.md).

| SWAG | timm |
|---|---|
| `class_token` | `cls_token` |
| `conv_proj.*` | `patch_embed.proj.*` |
| `encoder.pos_embedding` [tokens, 1, width] | `pos_embed` [1, tokens, width] |
| `encoder.layers.layer_N.ln_1.*`, `ln_2.*` | `blocks.N.norm1.*`, `norm2.*` |
| `encoder.layers.layer_N.self_attention.in_proj_weight`, `_bias` | `blocks.N.attn.qkv.*` |
| `encoder.layers.layer_N.self_attention.out_proj.*` | `blocks.N.attn.proj.*` |
| `encoder.layers.layer_N.mlp.linear_1.*`, `linear_2.*` | `blocks.N.mlp.fc1.*`, `fc2.*` |
| `encoder.ln.*` | `norm.*` |

Both stack query, key and value in that order, head by head, so only the positions change shape.
torchvision's port of the same weights differs in `encoder_layer_N`, `mlp.0` and `mlp.3`, and in the
positions, which are [1, tokens, width] as in timm.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming

__all__ = ["TO_TIMM", "register_with_transformers", "rename_to_timm"]

POSITIONS = ("encoder.pos_embedding", "pos_embed")
# Parts of SWAG's names -> parts of timm's, replaced in this order.
TO_TIMM = {
    "class_token": "cls_token",
    "conv_proj.": "patch_embed.proj.",
    "encoder.layers.layer_": "blocks.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".self_attention.in_proj_": ".attn.qkv.",
    ".self_attention.out_proj.": ".attn.proj.",
    ".mlp.linear_1.": ".mlp.fc1.",
    ".mlp.linear_2.": ".mlp.fc2.",
    "encoder.ln.": "norm.",
}
_FROM_TORCHVISION = {
    ".encoder_layer_": ".layer_",
    ".mlp.0.": ".mlp.linear_1.",
    ".mlp.3.": ".mlp.linear_2.",
}


def rename_to_timm(state_dict: Mapping[str, Tensor], *, prefix: str = "") -> dict[str, Tensor]:
    """The tensors with timm's names; tensors that already have them keep them.

    Args:
        state_dict: The tensors by SWAG's, torchvision's or timm's names.
        prefix: The prefix of the names to change, such as `swag.`; other names are kept.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        if name.startswith(prefix):
            own = _replace_parts(name.removeprefix(prefix), _FROM_TORCHVISION)
            if own == POSITIONS[0]:
                own, tensor = (
                    POSITIONS[1],
                    tensor if tensor.shape[0] == 1 else tensor.transpose(0, 1),
                )
            name = prefix + _replace_parts(own, TO_TIMM)
        renamed[name] = tensor
    return renamed


def register_with_transformers() -> None:
    """Make loading and saving of the model type `swag` use SWAG's names in files."""
    renamings = []
    for own, timm in TO_TIMM.items():
        # transformers treats them as regular expressions that end on a name boundary: a final dot
        # would also match the digit of `norm1`.
        dotted = own.endswith(".")
        renamings.append(
            WeightRenaming(own[:-1], timm[:-1]) if dotted else WeightRenaming(own, timm)
        )
    own, timm = POSITIONS
    positions = WeightConverter(own, timm, operations=[Transpose(0, 1)])
    register_checkpoint_conversion_mapping("swag", [*renamings, positions], overwrite=True)


def _replace_parts(name: str, parts: Mapping[str, str]) -> str:
    for part, replacement in parts.items():
        name = name.replace(part, replacement, 1)
    return name
