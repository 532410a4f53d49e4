"""Foreign weight files as plain tensors by name, without running any code in them.

`.safetensors` contains only tensors. Everything else is a pickle, read by PyTorch's `weights_only`
loader, which refuses every class and function outside a short list. One name is added to that list:
`configs.Config`, which the original's training checkpoints contain. It is replaced by a class that
discards its state.
"""

import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cit_curate.errors import ConfigError, DamagedError

__all__ = ["read_tensors", "unpickle_tensors"]


class _InertConfig:
    """A substitute for the original's configuration object, which discards its state."""

    def __init__(self, *unused: object, **also_unused: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_tensors(path: Path, *keys: str) -> dict[str, Tensor]:
    """The tensors of a weight file.

    Args:
        path: A `.safetensors` file, or a PyTorch file of any name.
        *keys: The keys under which a PyTorch file may have its tensors, such as `model`. The first
            existing one is used, else the whole file.

    Raises:
        ConfigError: There is no such file, or it is not a mapping of names to tensors.
        DamagedError: The file is truncated or not a weight file, or its content is refused.
    """
    if not path.is_file():
        raise ConfigError(f"there is no weight file {path}")
    if tarfile.is_tarfile(path):
        raise ConfigError(
            f"{path} is a tar, not a weight file; a released checkpoint of the original CiT is for "
            "`cit convert checkpoint`"
        )
    if path.suffix != ".safetensors":
        return unpickle_tensors(path, str(path), *keys)
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise DamagedError(f"{path} is not a readable safetensors file: {error}") from error


def unpickle_tensors(source: Path | IO[bytes], origin: str, *keys: str) -> dict[str, Tensor]:
    """The tensors of a PyTorch file, like `read_tensors`.

    Args:
        source: A path, or a seekable file open for reading.
        origin: The name of the source, for error messages.
        *keys: As in `read_tensors`.

    Raises:
        ConfigError: The source is not a mapping of names to tensors.
        DamagedError: The source is truncated or not a PyTorch file, or its content is refused.
    """
    try:
        # Memory-mapped if possible: a training checkpoint is three times the size of its weights.
        mapped = isinstance(source, Path) and zipfile.is_zipfile(source)
        with torch.serialization.safe_globals([(_InertConfig, "configs.Config")]):
            loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise DamagedError(
            f"{origin} is refused: it holds more than tensors ({_refused(error)}); "
            "nothing in it was run. Take weights from a source that you trust, as safetensors"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle may raise any error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedError(f"{origin} is not a readable PyTorch file: {reason}") from error
    tensors = _tensors(loaded, origin, keys)
    # A model must not stay mapped to a file that may be overwritten.
    return {name: tensor.clone() for name, tensor in tensors.items()} if mapped else tensors


def _refused(error: pickle.UnpicklingError) -> str:
    """PyTorch's reason, without its advice to disable the check."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if "GLOBAL" in line or "nsupported" in line]
    reason = reasons[-1] if reasons else (lines or ["unknown"])[-1]
    return reason.removeprefix("WeightsUnpickler error:").strip().split(" Please use")[0]


def _tensors(loaded: Any, origin: str, keys: tuple[str, ...]) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in keys if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{origin} holds a {type(loaded).__name__}, not tensors by name")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others or not loaded:
        content = f"also {', '.join(others[:5])}" if others else "nothing"
        searched = f", nor under the keys {', '.join(keys)}" if keys else ""
        raise ConfigError(f"{origin} holds {content}; it is not a mapping of tensors{searched}")
    return {str(name): tensor.detach() for name, tensor in loaded.items()}
