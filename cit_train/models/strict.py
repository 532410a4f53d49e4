"""Weights into a model, where each tensor that is missing, unexpected or misshaped is an error.

`from_pretrained` fills a missing tensor with random numbers and drops an unexpected one, with a
warning at most. Beneath it is the only loader that knows under which other names older versions
stored a weight, so it does the loading here too, and its findings are errors.
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
        model_class: What to build.
        config: Its sizes.
        tensors: Its state dict, also under names of older versions of transformers.
        origin: What messages call the source.

    Raises:
        ConfigError: Tensors are missing, unexpected or misshaped; the message lists them.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its own report of the differences says no more
    transformers_logging.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # so that they are listed with the others
            output_loading_info=True,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{origin} cannot be loaded: {str(error).splitlines()[0]}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    # transformers skips `position_ids` wherever they are; the known old ones are gone by now.
    strays = {name for name in tensors if name.endswith("position_ids")}
    refuse_differences({**info, "unexpected_keys": info["unexpected_keys"] | strays}, origin)
    return model.eval()


def refuse_differences(
    info: Mapping[str, Any], origin: str, *, unexpected_is_fine: bool = False
) -> None:
    """Raise when a checkpoint and its model do not have the same tensors.

    Args:
        info: What `from_pretrained` gives with `output_loading_info=True`.
        origin: What the message calls the checkpoint.
        unexpected_is_fine: Let tensors pass that the model has no place for.

    Raises:
        ConfigError: They differ; the message lists the names.
    """
    misshaped = {
        name: f"{name} {tuple(stored)} instead of {tuple(wanted)}"
        for name, stored, wanted in info["mismatched_keys"]
    }
    differences = {"missing": sorted(set(info["missing_keys"]) - misshaped.keys())}
    if not unexpected_is_fine:
        differences["unexpected"] = sorted(info["unexpected_keys"])
    differences["misshaped"] = [misshaped[name] for name in sorted(misshaped)]
    found = [
        f"{len(names)} {what}: {', '.join(names)}" for what, names in differences.items() if names
    ]
    if found:
        raise ConfigError(f"{origin} does not fit its config; {'; '.join(found)}")
