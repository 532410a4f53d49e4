"""The original's checkpoints: released directories and tars, and those of its training.

| path | content |
|---|---|
| a directory, or its tar | `config.json` and `pytorch_model.bin`, a dual encoder's state dict |
| `checkpoint-best.pth` | the state dict under `model`, beside optimizer and configuration |

All are read without running their code (`weight_files`) or unpacking a tar to disk. They are loaded
strictly: of the tensors that today's transformers does not have, only old buffers are tolerated.
"""

import io
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from cit_curate.errors import ConfigError, DamagedError
from cit_train.models.inferred_config import infer_dual_config
from cit_train.models.strict import load_strictly
from cit_train.models.weight_files import read_tensors, unpickle_tensors

__all__ = [
    "ReleasedCheckpoint",
    "accept_old_buffers",
    "dual_encoder_from_config",
    "is_released",
    "load_released",
    "open_released",
    "read_config",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "pytorch_model.bin"
MODEL_TYPE = "vision-text-dual-encoder"
# Buffers in old checkpoints that today's models compute: the positions of BERT and CLIP.
OLD_BUFFERS = re.compile(r"(^|\.)embeddings\.position_ids$")
MAX_CONFIG_BYTES = 2**20
MAX_WEIGHTS_BYTES = 2**33
MAX_MEMBERS = 1_000


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A dual encoder's config and tensors, and the path for error messages."""

    config: VisionTextDualEncoderConfig
    tensors: dict[str, Tensor]
    origin: str


def is_released(path: Path) -> bool:
    """Whether `open_released` can read the path: a file, or a directory with pytorch_model.bin."""
    return path.is_file() or (path / WEIGHTS_FILE).is_file()


def open_released(path: Path, *, config: Path | None = None) -> ReleasedCheckpoint:
    """Read a checkpoint of the original.

    Args:
        path: A directory, a `.tar` of one, or a training checkpoint.
        config: The model's `config.json`, if it is not beside the weights and the towers cannot be
            inferred from names and shapes.

    Raises:
        ConfigError: The path is none of these, or its config is not a dual encoder's.
        DamagedError: The checkpoint is truncated, or its content is refused.
    """
    if path.is_dir():
        own_config = read_config(config or path / CONFIG_FILE)
        return ReleasedCheckpoint(own_config, read_tensors(path / WEIGHTS_FILE), str(path))
    if not path.is_file():
        raise ConfigError(f"there is no checkpoint {path}")
    if tarfile.is_tarfile(path):
        return _open_tar(path, config)
    tensors = read_tensors(path, "model")
    if all(name.startswith("module.") for name in tensors):  # as DistributedDataParallel names them
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    dual_config = read_config(config) if config else infer_dual_config(tensors)
    return ReleasedCheckpoint(dual_config, tensors, str(path))


def read_config(path: Path) -> VisionTextDualEncoderConfig:
    """A dual encoder's config, from a `config.json` or its directory.

    Raises:
        ConfigError: The file is missing, or not a dual encoder's config.
    """
    path = path / CONFIG_FILE if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"{path} is missing")
    return _parse_config(path.read_bytes(), str(path))


def dual_encoder_from_config(path: Path | str) -> VisionTextDualEncoderModel:
    """A dual encoder with random weights, whose `load_state_dict` accepts the released ones.

        model = dual_encoder_from_config("yfcc15m_in1k_mocob16")
        state_dict = torch.load("yfcc15m_in1k_mocob16/pytorch_model.bin", weights_only=True)
        model.load_state_dict(state_dict)

    Args:
        path: A `config.json`, or its directory.

    Raises:
        ConfigError: The file is missing, or not a dual encoder's config.
    """
    model = AutoModel.from_config(read_config(Path(path)), dtype=torch.float32)
    accept_old_buffers(model)
    return model.eval()


def accept_old_buffers(model: nn.Module) -> None:
    """Let `load_state_dict` skip `embeddings.position_ids`, which BERT no longer keeps."""
    register: Any = model.register_load_state_dict_pre_hook
    register(_skip_old_buffers)


def _skip_old_buffers(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: object
) -> None:
    for name in [name for name in state_dict if OLD_BUFFERS.search(name)]:
        del state_dict[name]


def load_released(checkpoint: ReleasedCheckpoint) -> VisionTextDualEncoderModel:
    """The model, in eval mode and float32, with every tensor of the checkpoint and no other.

    Raises:
        ConfigError: Tensors are missing, unexpected or misshaped; the message lists them.
    """
    tensors = {n: t for n, t in checkpoint.tensors.items() if not OLD_BUFFERS.search(n)}
    return load_strictly(
        VisionTextDualEncoderModel, checkpoint.config, tensors, origin=checkpoint.origin
    )


def _open_tar(path: Path, config: Path | None) -> ReleasedCheckpoint:
    try:
        with tarfile.open(path) as archive:
            members = _find_members(archive, path)
            text = _read_member(archive, members[CONFIG_FILE]).read()
            stream = _read_member(archive, members[WEIGHTS_FILE])
            # PyTorch seeks back and forth, which a compressed tar cannot do.
            if not _is_uncompressed(path):
                stream = io.BytesIO(stream.read())
            tensors = unpickle_tensors(stream, f"{path}: {members[WEIGHTS_FILE].name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DamagedError(f"{path} is not a complete tar: {error}") from error
    dual_config = read_config(config) if config else _parse_config(text, f"{path}: {CONFIG_FILE}")
    return ReleasedCheckpoint(dual_config, tensors, str(path))


def _is_uncompressed(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def _find_members(archive: tarfile.TarFile, path: Path) -> dict[str, tarfile.TarInfo]:
    """The two files of the model, in one folder of the tar; nothing else is read."""
    limits = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: MAX_WEIGHTS_BYTES}
    members: dict[str, tarfile.TarInfo] = {}
    for number, member in enumerate(archive):
        if number >= MAX_MEMBERS:
            raise DamagedError(
                f"{path} has over {MAX_MEMBERS:,} members; it is not the tar of a model"
            )
        name = PurePosixPath(member.name)
        if name.name not in limits or not member.isreg():
            continue
        if name.name in members:
            raise ConfigError(f"{path} has more than one {name.name}; unpack the one you mean")
        if member.size > limits[name.name]:
            raise DamagedError(
                f"{path}: {member.name} has {member.size:,} bytes; "
                f"the limit is {limits[name.name]:,}"
            )
        members[name.name] = member
    folders = {PurePosixPath(member.name).parent for member in members.values()}
    if len(members) < len(limits) or len(folders) > 1:
        raise ConfigError(f"{path} does not have {' and '.join(limits)} in one folder")
    return members


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    stream = archive.extractfile(member)
    assert stream is not None, "a regular member can be read"
    return stream


def _parse_config(text: bytes, origin: str) -> VisionTextDualEncoderConfig:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DamagedError(f"{origin} is not JSON: {error}") from error
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type != MODEL_TYPE:
        raise ConfigError(f"{origin} has model_type {model_type!r}; expected {MODEL_TYPE!r}")
    for tower in ("vision_config", "text_config"):
        if not isinstance(values.get(tower), dict):
            raise ConfigError(f"{origin} has no {tower}")
    try:
        return VisionTextDualEncoderConfig.from_dict(values)
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{origin} is not a config that this version can read: {reason}"
        ) from error
