"""Foreign weight files as plain tensors by name, without running anything that is in them.

`.safetensors` holds tensors only. Everything else is a pickle, read by PyTorch's `weights_only`
loader, which refuses each class and function outside a short list. One name is added to that list:
`configs.Config`, which the original's training checkpoints hold; a class that keeps nothing stands
in for it.
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
    """Takes the place of the original's configuration object, and keeps nothing of it."""

    def __init__(self, *unused: object, **also_unused: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_tensors(path: Path, *keys: str) -> dict[str, Tensor]:
    """The tensors of a weight file.

    Args:
        path: `.safetensors`, or a PyTorch file of any name.
        *keys: Where a PyTorch file may hold its tensors, such as `model`; the first that is there
            is taken, else the whole file.

    Raises:
        ConfigError: There is no such file, or it holds something else than tensors by name.
        DamagedError: The file is cut or no weight file, or holds what is refused.
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
        source: A path, or a file that is open for reading and can seek.
        origin: What the messages call it.
        *keys: As in `read_tensors`.

    Raises:
        ConfigError: It holds something else than tensors by name.
        DamagedError: It is cut or no PyTorch file, or holds what is refused.
    """
    try:
        # Mapped into memory where possible: a training checkpoint is three times its weights.
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
    except Exception as error:  # a damaged pickle raises whatever comes to it
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedError(f"{origin} is not a readable PyTorch file: {reason}") from error
    tensors = _tensors(loaded, origin, keys)
    # A model must not live in a file that its owner may overwrite.
    return {name: tensor.clone() for name, tensor in tensors.items()} if mapped else tensors


def _refused(error: pickle.UnpicklingError) -> str:
    """PyTorch's reason, without its advice to switch the check off."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if "GLOBAL" in line or "nsupported" in line]
    reason = reasons[-1] if reasons else (lines or ["unknown"])[-1]
    return reason.removeprefix("WeightsUnpickler error:").strip().split(" Please use")[0]


def _tensors(loaded: Any, origin: str, keys: tuple[str, ...]) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in keys if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{origin} holds a {type(loaded).__name__}, not tensors by name")
    strangers = [str(n) for n, v in loaded.items() if not isinstance(v, Tensor)]
    if strangers or not loaded:
        found = f"also {', '.join(strangers[:5])}" if strangers else "nothing"
        looked = f", nor under the keys {', '.join(keys)}" if keys else ""
        raise ConfigError(f"{origin} holds {found}; it is not a mapping of tensors{looked}")
    return {str(name): tensor.detach() for name, tensor in loaded.items()}
