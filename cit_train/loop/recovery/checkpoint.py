"""Checkpoints: a Hugging Face directory, and beside it the state of the trainer.

```
checkpoints/update-000500/
  config.json, model.safetensors, tokenizer and processor files    loadable with `AutoModel`
  optimizer.safetensors   AdamW's moments and steps, by parameter name
  trainer.json            gradient scaler
  manifest.json           every file with size and SHA-256, written before the folder is renamed
checkpoints/last, checkpoints/best -> update-…
```
All randomness of training is a function of (seed, update, lane), so there is no generator to save.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ProcessorMixin, VisionTextDualEncoderModel

from cit_curate.errors import DamagedError
from cit_curate.storage.durable import (
    atomic_folder,
    check_listing,
    read_json,
    replace_link,
    write_json,
    write_listing,
)
from cit_train.inner_loop.trainer import Trainer


def checkpoint_name(update: int) -> str:
    """The folder of a checkpoint, relative to the run."""
    return f"checkpoints/update-{update:06d}"


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint, copied so that training continues while it is written."""

    model: VisionTextDualEncoderModel
    processor: ProcessorMixin
    optimizer: Mapping[str, Tensor]
    scaler: Mapping[str, Any]


def take_snapshot(trainer: Trainer) -> Snapshot:
    """Copy the current state of the trainer."""
    return Snapshot(
        copy.deepcopy(trainer.model),
        trainer.processor,
        {name: value.detach().clone() for name, value in _optimizer_tensors(trainer).items()},
        dict(trainer.scaler.state_dict()),
    )


def save_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint, whole or not at all; an existing one stays unchanged."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        snapshot.model.save_pretrained(temporary)
        snapshot.processor.save_pretrained(temporary)
        save_file(dict(snapshot.optimizer), temporary / "optimizer.safetensors")
        write_json(temporary / "trainer.json", {"scaler": snapshot.scaler})
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        write_listing(temporary / "manifest.json", files)


def check_checkpoint(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        DamagedError: A file, or the whole checkpoint, is missing or changed.
    """
    check_listing(folder / "manifest.json")


def load_checkpoint(folder: Path, trainer: Trainer) -> None:
    """Load a checkpoint's weights and optimizer state into a trainer.

    Raises:
        DamagedError: A file is missing or changed, or does not fit the model.
    """
    check_checkpoint(folder)
    # Through transformers, which may store a weight under another name than the module has.
    stored = type(trainer.model).from_pretrained(folder, dtype=torch.float32)
    try:
        trainer.model.load_state_dict(stored.state_dict())
    except RuntimeError as error:
        raise DamagedError(f"{folder} does not fit the model: {error}") from error
    tensors = load_file(folder / "optimizer.safetensors")
    for name, parameter in _named_parameters(trainer):
        state = {
            key: tensors[f"{key}/{name}"]
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{key}/{name}" in tensors
        }
        if state:
            is_fused = bool(trainer.optimizer.defaults["fused"])
            trainer.optimizer.state[parameter] = on_device(state, parameter.device, is_fused)
    scaler = read_json(folder / "trainer.json")["scaler"]
    if scaler:  # empty where the run had no scaler before --allow-change precision
        trainer.scaler.load_state_dict(scaler)


def on_device(
    state: Mapping[str, Tensor], device: torch.device, is_fused: bool
) -> dict[str, Tensor]:
    """AdamW's state of one parameter where AdamW expects it.

    Args:
        state: `step`, `exp_avg` and `exp_avg_sq`, on the CPU.
        device: The device of the parameter.
        is_fused: Whether AdamW is one kernel, which counts the steps on the device, too.
    """
    return {
        key: value if key == "step" and not is_fused else value.to(device)
        for key, value in state.items()
    }


def point_to(run_folder: Path, label: str, checkpoint: str) -> None:
    """Point the link `checkpoints/<label>` to a checkpoint, replacing an old link atomically."""
    replace_link(run_folder / "checkpoints" / label, Path(checkpoint).name)


def checkpoints_except(run_folder: Path, keep: Iterable[str]) -> list[Path]:
    """The checkpoints of a run that are not in `keep`."""
    kept = {Path(name).name for name in keep}
    paths = sorted((run_folder / "checkpoints").glob("update-*"))
    return [path for path in paths if path.name not in kept]


def _optimizer_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in _named_parameters(trainer):
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).contiguous()
    return tensors


def _named_parameters(trainer: Trainer) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
