"""The text side of a saved dual encoder: its text tower and projection.

Only the text weights of `model.safetensors` are read, so the vision tower may be of any type.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from cit_curate.errors import ConfigError, DamagedError, first_line
from cit_curate.storage.durable import read_json
from cit_curate.text_encoder.text_models import new_text_model

_MODEL_TYPE = "vision-text-dual-encoder"
_TOWER = "text_model."
_PROJECTION = "text_projection.weight"


def dual_encoder_folder(path: Path) -> Path | None:
    """The folder of a saved dual encoder: the path itself, or a checkpoint of the run there.

    Returns:
        The folder; None if there is no dual encoder.
    """
    for folder in (path, path / "checkpoints" / "best", path / "checkpoints" / "last"):
        config = folder / "config.json"
        if config.is_file() and (folder / "model.safetensors").is_file():
            read = read_json(config)
            is_dual = isinstance(read, dict) and read.get("model_type") == _MODEL_TYPE
            return folder if is_dual else None
    return None


def load_text_side(folder: Path) -> tuple[PreTrainedModel, torch.nn.Linear]:
    """The text tower and the text projection of a saved dual encoder, in float32.

    Raises:
        DamagedError: The weights are cut, or do not fit the config.
    """
    config = read_json(folder / "config.json")
    weights = folder / "model.safetensors"
    try:
        text_config = AutoConfig.for_model(**config["text_config"])
        tower = new_text_model(text_config, dtype=torch.float32)
        with safe_open(weights, framework="pt") as stored:
            names = [name for name in stored.keys() if name.startswith(_TOWER)]  # noqa: SIM118
            tensors = {name.removeprefix(_TOWER): stored.get_tensor(name) for name in names}
            weight = stored.get_tensor(_PROJECTION).float()
        _fill(tower, tensors)
    except (
        LookupError,
        ValueError,
        TypeError,
        RuntimeError,
        OSError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        reason = first_line(error)
        raise DamagedError(f"{weights} is not the dual encoder of its config: {reason}") from error
    projection = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        projection.weight.copy_(weight)
    return tower, projection


def _fill(tower: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load all weights of a tower; of tied ones, such as T5's embeddings, files hold only one."""
    found = tower.load_state_dict(tensors, strict=False)
    state = tower.state_dict()
    filled = {weight.data_ptr() for name, weight in state.items() if name in tensors}
    missing = [name for name in found.missing_keys if state[name].data_ptr() not in filled]
    if missing or found.unexpected_keys:
        names = ", ".join([*missing, *found.unexpected_keys][:4])
        raise ValueError(f"the weights of its text tower differ in {names}")


def load_text_projection(path: str) -> torch.nn.Linear:
    """The text projection of the dual encoder at a path.

    Raises:
        ConfigError: There is no dual encoder: a text tower alone has no projection.
    """
    folder = dual_encoder_folder(Path(path).expanduser())
    if folder is None:
        raise ConfigError(
            f"--project-embeddings: {path} is a text tower without a projection; "
            "give a run or a checkpoint of `cit train` as --text-encoder, or leave the flag out"
        )
    return load_text_side(folder)[1]
