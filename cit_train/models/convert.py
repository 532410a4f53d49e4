"""Conversion of third-party weights and the original's checkpoints to Hugging Face directories.

A converted model is loaded back and compared before its directory gets its final name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from cit_curate.errors import ConfigError, DamagedError, NotFiniteError
from cit_curate.storage.durable import atomic_folder
from cit_curate.text_encoder.hub import hub_folder
from cit_train.models.dual_encoder import make_processor
from cit_train.models.image_processor import make_image_processor
from cit_train.models.inferred_config import infer_tower_config
from cit_train.models.load import find_tokenizer
from cit_train.models.released import OLD_BUFFERS, load_released, open_released
from cit_train.models.strict import load_strictly
from cit_train.models.swag_names import rename_to_timm
from cit_train.models.timm_tower import (
    SWAG_ARCHITECTURES,
    AugregModel,
    MocoModel,
    SwagModel,
    TimmTowerModel,
)
from cit_train.models.weight_files import read_tensors
from cit_train.transforms import image_statistics

__all__ = ["Conversion", "convert_checkpoint", "convert_tower"]

MAX_TEXT_LENGTH = 32
TIMM_PREFIX = "timm:"
AUGREG_TAG = "augreg_in21k"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        folder: The Hugging Face directory.
        model_type: The model type, such as `moco` or `vision-text-dual-encoder`.
        architecture: The architecture of the vision tower.
        image_size: The side of the vision tower's input, in pixels.
        pooled_size: The width of the vision tower's pooled output.
        num_tensors: The tensors of the model.
        left_out: The names of the source's tensors that the model does not use.
        tokenizer: Whether a tokenizer was written beside the model.
    """

    folder: Path
    model_type: str
    architecture: str
    image_size: int
    pooled_size: int
    num_tensors: int
    left_out: tuple[str, ...] = ()
    tokenizer: bool = False


def convert_tower(family: str, source: str, out: Path) -> Conversion:
    """Write a `moco`, `augreg` or `swag` tower as a Hugging Face directory.

    Args:
        family: The family: `moco`, `augreg` or `swag`.
        source: A weight file; for `augreg` also `timm:NAME` or a bare timm name, fetched from a
            hub.
        out: The directory to create.

    Raises:
        ConfigError: `out` exists, or the source is unavailable or of another model; the message
            lists its tensors.
        DamagedError: The source is truncated, or contains more than tensors.
        NotFiniteError: The tower's output is NaN or infinite.
    """
    _refuse_existing(out)
    tensors = _read_source(family, source)
    model_class, select = _FAMILIES[family]
    kept, left_out = select(tensors, source)
    config = infer_tower_config(family, kept)
    named = {f"{family}.{name}": tensor for name, tensor in kept.items()}
    model = load_strictly(model_class, config, named, origin=source)
    with atomic_folder(out) as temporary:
        _save(model, temporary)
        make_image_processor(image_statistics(config)).save_pretrained(temporary)
        _check(model, temporary)
    return Conversion(
        folder=out,
        model_type=family,
        architecture=config.config_name,
        image_size=config.image_size,
        pooled_size=int(config.hidden_size or 0),
        num_tensors=len(model.state_dict()),
        left_out=left_out,
    )


def convert_checkpoint(
    source: Path, out: Path, *, tokenizer: str | None = None, config: Path | None = None
) -> Conversion:
    """Write a checkpoint of the original as a Hugging Face directory with safetensors.

    Args:
        source: A directory with config.json and pytorch_model.bin, its `.tar`, or a `.pth`.
        out: The directory to create.
        tokenizer: The directory or hub id of a tokenizer; None = as in `load_dual_encoder`, or
            no tokenizer.
        config: A config.json, for a `.pth` whose towers cannot be inferred from names and shapes.

    Raises:
        ConfigError: `out` exists, or the source is not a dual encoder, or its tensors do not match
            its config.
        DamagedError: The source is truncated, or contains more than tensors.
        NotFiniteError: The vision tower's output is NaN or infinite.
    """
    _refuse_existing(out)
    checkpoint = open_released(source, config=config)
    model = load_released(checkpoint)
    own_tokenizer = find_tokenizer(
        tokenizer,
        source if source.is_dir() else None,
        vocabulary=model.config.text_config.vocab_size,
    )
    vision = model.config.vision_config
    statistics = image_statistics(vision)
    with atomic_folder(out) as temporary:
        _save(model, temporary)
        make_image_processor(statistics).save_pretrained(temporary)
        if own_tokenizer is not None:
            processor = make_processor(own_tokenizer, statistics, max_text_length=MAX_TEXT_LENGTH)
            processor.save_pretrained(temporary)
        _check(model, temporary)
    return Conversion(
        folder=out,
        model_type=model.config.model_type,
        architecture=getattr(vision, "config_name", vision.model_type),
        image_size=statistics.side,
        pooled_size=vision.hidden_size,
        num_tensors=len(model.state_dict()),
        left_out=tuple(name for name in checkpoint.tensors if OLD_BUFFERS.search(name)),
        tokenizer=own_tokenizer is not None,
    )


_Selection = tuple[dict[str, Tensor], tuple[str, ...]]


def _select_moco(tensors: Mapping[str, Tensor], origin: str) -> _Selection:
    """The base encoder; the momentum encoder and the predictor are left out."""
    kept, left_out, unknown = {}, [], []
    for name, tensor in tensors.items():
        part, _, rest = name.removeprefix("module.").partition(".")
        if part == "base_encoder":
            kept[rest] = tensor
        elif part in ("momentum_encoder", "predictor"):
            left_out.append(name)
        else:
            unknown.append(name)
    if unknown or not kept:
        names = ", ".join(unknown[:5]) or "no module.base_encoder.*"
        raise ConfigError(f"{origin} is not a checkpoint of MoCo-v3 ViT: it has {names}")
    return kept, tuple(left_out)


def _select_augreg(tensors: Mapping[str, Tensor], origin: str) -> _Selection:
    return dict(tensors), ()


def _select_swag(tensors: Mapping[str, Tensor], origin: str) -> _Selection:
    """The trunk; the classifier of a fine-tuned model is left out."""
    if "cls_token" in tensors:
        # They would load, but then run on images with SWAG's normalisation instead of their own.
        raise ConfigError(
            f"{origin} has timm's names, not SWAG's; AugReg weights are for `cit convert augreg`, "
            "and --vision-encoder takes other timm models without conversion"
        )
    left_out = tuple(name for name in tensors if name.startswith(("head.", "heads.")))
    return rename_to_timm({n: t for n, t in tensors.items() if n not in left_out}), left_out


_FAMILIES: dict[
    str, tuple[type[TimmTowerModel], Callable[[Mapping[str, Tensor], str], _Selection]]
] = {
    "moco": (MocoModel, _select_moco),
    "augreg": (AugregModel, _select_augreg),
    "swag": (SwagModel, _select_swag),
}


def _read_source(family: str, source: str) -> dict[str, Tensor]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return read_tensors(path, "state_dict", "model")
    name = source.removeprefix(TIMM_PREFIX)
    if family == "augreg" and timm.is_model(name):
        return _fetch_from_timm(name)
    hub = family == "swag" and source.removesuffix("_in1k") in SWAG_ARCHITECTURES
    reason = "is a torch hub name, whose code is not run here" if hub else "is not a file"
    raise ConfigError(
        f"{source} {reason}; fetch the weights with `cit pull` and give the path of the file"
    )


def _fetch_from_timm(name: str) -> dict[str, Tensor]:
    tagged = name if "." in name else f"{name}.{AUGREG_TAG}"
    repository = getattr(timm.get_pretrained_cfg(tagged), "hf_hub_id", None)
    if not repository:
        raise ConfigError(f"timm knows no weights {tagged!r}")
    return _read_folder(hub_folder(repository))


def _read_folder(folder: Path) -> dict[str, Tensor]:
    files = [folder / name for name in _WEIGHT_FILES if (folder / name).is_file()]
    if not files:
        raise ConfigError(f"{folder} has none of {', '.join(_WEIGHT_FILES)}")
    return read_tensors(files[0], "state_dict", "model")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} already exists; choose another path, or remove it")


def _save(model: PreTrainedModel, folder: Path) -> None:
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)


@torch.inference_mode()
def _check(model: PreTrainedModel, folder: Path) -> None:
    """Load the written model, and compare every tensor and the pooled output of one image."""
    reloaded = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    written, source = reloaded.state_dict(), model.state_dict()
    different = [
        name for name in source if name not in written or not _equal(source[name], written[name])
    ]
    if different or written.keys() != source.keys():
        raise DamagedError(f"{folder} differs from its source: {', '.join(different[:5])}")
    towers: list[Any] = [getattr(tower, "vision_model", tower) for tower in (model, reloaded)]
    side = image_statistics(towers[0].config).side
    pixels = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
    expected, output = (tower(pixel_values=pixels).pooler_output for tower in towers)
    if not torch.isfinite(expected).all():
        raise NotFiniteError(
            "the output of the vision tower is NaN or infinite; its weights are broken"
        )
    # Not bit by bit: a matrix product depends on the memory alignment of the tensors.
    if not torch.allclose(expected, output, rtol=1e-3, atol=1e-4):
        raise DamagedError(f"the pooled output of {folder} differs from that of its source")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
