"""Strict loading of weights: a missing, unexpected or misshaped tensor is an error.

`from_pretrained` fills a missing tensor with random numbers and drops an unexpected one, with a
warning at most. But only its loader knows the names that older versions used for a weight. So it
does the loading here too, and its findings become errors.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from cit_curate.errors import ConfigError

__all__ = ["load_strictly", "refuse_differences"]


def load_strictly(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: Mapping[str, Tensor],
    *,
    origin: str,
) -> PreTrainedModel:
    """The model of a config, float32 and in eval mode, with exactly these tensors.

    Args:
        model_class: The class of the model.
        config: The config of the model.
        tensors: The state dict, possibly with names of older versions of transformers.
        origin: The source of the tensors, for error messages.

    Raises:
        ConfigError: Tensors are missing, unexpected or misshaped; the message lists them.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of the differences adds nothing
    transformers_logging.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # so that the error lists them with the others
            output_loading_info=True,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{origin} cannot be loaded: {str(error).splitlines()[0]}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    # transformers ignores every `position_ids`; the known old ones were removed before.
    unknown = {name for name in tensors if name.endswith("position_ids")}
    refuse_differences({**info, "unexpected_keys": info["unexpected_keys"] | unknown}, origin)
    return model.eval()


def refuse_differences(
    info: Mapping[str, Any], origin: str, *, unexpected_is_fine: bool = False
) -> None:
    """Raise when a checkpoint and its model do not have the same tensors.

    Args:
        info: The result of `from_pretrained` with `output_loading_info=True`.
        origin: The source of the checkpoint, for the error message.
        unexpected_is_fine: Whether to ignore tensors that the model does not have.

    Raises:
        ConfigError: The tensors differ; the message lists the names.
    """
    misshaped = {
        name: f"{name} {tuple(stored)} instead of {tuple(expected)}"
        for name, stored, expected in info["mismatched_keys"]
    }
    differences = {"missing": sorted(set(info["missing_keys"]) - misshaped.keys())}
    if not unexpected_is_fine:
        differences["unexpected"] = sorted(info["unexpected_keys"])
    differences["misshaped"] = [misshaped[name] for name in sorted(misshaped)]
    reasons = [
        f"{len(names)} {kind}: {', '.join(names)}" for kind, names in differences.items() if names
    ]
    if reasons:
        raise ConfigError(f"{origin} does not match its config; {'; '.join(reasons)}")
