"""Third-party weights and the original's checkpoints into Hugging Face directories.

What is written is loaded back and compared before it gets its name.
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
    """What was written.

    Attributes:
        folder: The Hugging Face directory.
        model_type: Such as `moco`, or `vision-text-dual-encoder`.
        architecture: Of the vision tower.
        image_size: Side of its input in pixels.
        pooled_size: Width of its pooled output.
        num_tensors: In the model.
        left_out: Tensors of the source that the model has no use for.
        tokenizer: Whether there is one beside the model.
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
        family: Which of the three.
        source: A weight file; for `augreg` also `timm:NAME` or a bare timm name, which asks a hub.
        out: The directory, which must not be there yet.

    Raises:
        ConfigError: The source is not to be had or is another model's; tensors are listed.
        DamagedError: The source is cut, or holds more than tensors.
        NotFiniteError: The tower gives NaN or infinity.
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
        out: The directory, which must not be there yet.
        tokenizer: Directory or hub id; None = as in `load_dual_encoder`, or none.
        config: A config.json, for a `.pth` whose towers are not known by names and shapes.

    Raises:
        ConfigError: The source is no dual encoder, or its tensors are not those of its config.
        DamagedError: The source is cut, or holds more than tensors.
        NotFiniteError: The vision tower gives NaN or infinity.
    """
    _refuse_existing(out)
    checkpoint = open_released(source, config=config)
    model = load_released(checkpoint)
    found = find_tokenizer(
        tokenizer,
        source if source.is_dir() else None,
        vocabulary=model.config.text_config.vocab_size,
    )
    vision = model.config.vision_config
    statistics = image_statistics(vision)
    with atomic_folder(out) as temporary:
        _save(model, temporary)
        make_image_processor(statistics).save_pretrained(temporary)
        if found is not None:
            processor = make_processor(found, statistics, max_text_length=MAX_TEXT_LENGTH)
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
        tokenizer=found is not None,
    )


_Selection = tuple[dict[str, Tensor], tuple[str, ...]]


def _select_moco(tensors: Mapping[str, Tensor], origin: str) -> _Selection:
    """The base encoder; the momentum encoder and the predictor are left out."""
    kept, left_out, strangers = {}, [], []
    for name, tensor in tensors.items():
        part, _, rest = name.removeprefix("module.").partition(".")
        if part == "base_encoder":
            kept[rest] = tensor
        elif part in ("momentum_encoder", "predictor"):
            left_out.append(name)
        else:
            strangers.append(name)
    if strangers or not kept:
        found = ", ".join(strangers[:5]) or "no module.base_encoder.*"
        raise ConfigError(f"{origin} is not a checkpoint of MoCo-v3 ViT: it has {found}")
    return kept, tuple(left_out)


def _select_augreg(tensors: Mapping[str, Tensor], origin: str) -> _Selection:
    return dict(tensors), ()


def _select_swag(tensors: Mapping[str, Tensor], origin: str) -> _Selection:
    """The trunk; the classifier of a fine-tuned model is left out."""
    if "cls_token" in tensors:
        # They would fit, and then see images normalised as SWAG's are and not as their own.
        raise ConfigError(
            f"{origin} has timm's names, not SWAG's; AugReg weights are for `cit convert augreg`, "
            "and --vision-encoder takes other timm models as they are"
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
    what = "is a torch hub name, whose code is not run here" if hub else "is not a file"
    raise ConfigError(
        f"{source} {what}; fetch the weights with `cit pull` and give the path of the file"
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
        raise ConfigError(f"{out} is there already; choose another place, or remove it")


def _save(model: PreTrainedModel, folder: Path) -> None:
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)


@torch.inference_mode()
def _check(model: PreTrainedModel, folder: Path) -> None:
    """Load what was written, and compare every tensor and the pooled output of one image."""
    again = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    written, wanted = again.state_dict(), model.state_dict()
    different = [
        name for name in wanted if name not in written or not _equal(wanted[name], written[name])
    ]
    if different or written.keys() != wanted.keys():
        raise DamagedError(f"{folder} was not written as it was read: {', '.join(different[:5])}")
    towers: list[Any] = [getattr(each, "vision_model", each) for each in (model, again)]
    side = image_statistics(towers[0].config).side
    pixels = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
    one, other = (tower(pixel_values=pixels).pooler_output for tower in towers)
    if not torch.isfinite(one).all():
        raise NotFiniteError("the vision tower gives NaN or infinity; its weights are broken")
    # Not bit by bit: a matrix product depends on where in memory the file's tensors lie.
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise DamagedError(f"{folder} gives another pooled output than its source")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
