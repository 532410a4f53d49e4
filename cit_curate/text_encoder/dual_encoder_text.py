"""The text side of a saved dual encoder: its text tower and projection.

Only the text weights of `model.safetensors` are read, so the vision tower may be of any type.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, PreTrainedModel

from cit_curate.errors import ConfigError, DamagedError
from cit_curate.storage.durable import read_json

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
            return folder if read_json(config).get("model_type") == _MODEL_TYPE else None
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
        tower = AutoModel.from_config(text_config, dtype=torch.float32)
        with safe_open(weights, framework="pt") as stored:
            names = [name for name in stored.keys() if name.startswith(_TOWER)]  # noqa: SIM118
            tensors = {name.removeprefix(_TOWER): stored.get_tensor(name) for name in names}
            weight = stored.get_tensor(_PROJECTION).float()
        tower.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedError(f"{weights} is not the dual encoder of its config: {reason}") from error
    projection = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        projection.weight.copy_(weight)
    return tower, projection


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
