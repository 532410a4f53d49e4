"""Models of the Hugging Face hub as local folders: from its cache, or downloaded once.

`hf://org/name`, `hf://org/name@revision` and plain ids are equivalent. A model in the cache is used
without any request. Otherwise one request with a short timeout looks the model up, so that a
misspelt name or a missing network shows within seconds. Only configuration, tokenizer and weights
are downloaded, never code.
"""

import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cit_curate.errors import ConfigError, ResourceError, first_line

__all__ = ["HUB_PREFIX", "HubName", "hub_folder", "network_errors", "refuse_offline"]

HUB_PREFIX = "hf://"
TIMEOUT_SECONDS = 5.0
# Files that load without code from the repository. PyTorch files are read with weights_only.
# sentence-transformers puts the config of a model's pooling into a folder, such as 1_Pooling.
_SETTINGS = re.compile(r"[^/]+\.(json|txt|model)|\d+_Pooling/config\.json")
_WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
)
_REPO_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_INSTEAD = (
    "A local directory (config.json, model.safetensors and, for text, tokenizer.json) needs no "
    "network, nor do package:minilm (text) and package:efficientnet-lite0 (vision)"
)


@dataclass(frozen=True)
class HubName:
    """A model of the hub and its revision: a branch, a tag or a commit."""

    repo_id: str
    revision: str = "main"

    @classmethod
    def parse(cls, name: str) -> "HubName":
        """Parse `hf://org/name@revision`, `org/name` or `name`.

        Raises:
            ConfigError: The text cannot be the name of a model.
        """
        repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
        if not _REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
            raise ConfigError(
                f"{name!r} is neither a directory nor a model of the hub "
                f"({HUB_PREFIX}org/name). {_INSTEAD}"
            )
        if ".." in revision or revision.startswith("/") or (not revision and "@" in name):
            raise ConfigError(f"{name!r} needs a branch, a tag or a commit after the @")
        return cls(repo_id, revision or "main")


def hub_folder(name: str, *, refresh: bool = False) -> Path:
    """The local folder of a model of the hub, downloaded unless the cache has all of it.

    Args:
        name: `hf://org/name`, `hf://org/name@revision` or a plain id.
        refresh: Look the model up even if it is in the cache: a branch may have moved.

    Returns:
        A snapshot in the hub's cache (HF_HOME): settings, tokenizer and weights.

    Raises:
        ConfigError: There is no such model or no network, or offline mode is on and the model is
            not in the cache.
        ResourceError: The download broke off; the files that have arrived are kept.
    """
    model = HubName.parse(name)
    cached = None if refresh else _cached(model)
    return cached if cached is not None else _fetched(name, model)


def refuse_offline(reason: str) -> None:
    """Raise an error if the environment forbids network access.

    Args:
        reason: The end of the message: why the network is needed, and the local alternative.

    Raises:
        ConfigError: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConfigError(f"offline mode is on (HF_HUB_OFFLINE): {reason}")


def network_errors() -> tuple[type[Exception], ...]:
    """The errors that a call to the hub raises when the network or the hub fails."""
    # The base class of the HTTP library that the installed huggingface_hub uses.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return HTTPError, OSError


def _cached(model: HubName) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model.repo_id,
            revision=model.revision,
            local_files_only=True,
            # The rest is checked below: other tools may have downloaded only some files.
            allow_patterns=["config.json"],
        )
    except OSError:  # LocalEntryNotFoundError is one
        return None
    names = [path.name for path in Path(folder).iterdir() if path.is_file()]
    return Path(folder) if _is_whole(Path(folder), names) else None


def _is_whole(folder: Path, names: Sequence[str]) -> bool:
    """Whether a snapshot has its config and all of its weights, unlike after a killed download."""
    if "config.json" not in names or not (weights := _weights(names)):
        return False
    kind = "model.safetensors" if weights[0].endswith(".safetensors") else "pytorch_model.bin"
    if kind in weights:
        return True
    try:
        index = json.loads((folder / f"{kind}.index.json").read_text(encoding="utf-8"))
        return set(index["weight_map"].values()) <= set(weights)
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _weights(names: Sequence[str]) -> list[str]:
    """The weight files to load, preferably safetensors."""
    for pattern in _WEIGHTS:
        if files := [name for name in names if pattern.fullmatch(name)]:
            return files
    return []


def _fetched(name: str, model: HubName) -> Path:
    from huggingface_hub import snapshot_download

    refuse_offline(f"{name} is not in the hub's cache here. {_INSTEAD}")
    settings, weights = _listed(name, model)
    try:
        # Weights last: if they are there, the tokenizer is too.
        for files in (settings, weights):
            folder = snapshot_download(
                model.repo_id,
                revision=model.revision,
                allow_patterns=[glob.escape(file) for file in files],
            )
        return Path(folder)
    except network_errors() as error:
        raise ResourceError(
            f"the download of {name} broke off: {first_line(error).rstrip('.')}; "
            "run the command again: the files that have arrived are kept"
        ) from error


def _listed(name: str, model: HubName) -> tuple[list[str], list[str]]:
    """The settings and the weights to download, from a single request to the hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(model.repo_id, revision=model.revision, timeout=TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise ConfigError(
            f"{name} is only for those who accepted its terms: do so on its page, "
            "and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{model.repo_id} has no revision {model.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{name} is neither a directory here nor a model that the hub shows you; check the "
            f"spelling, or log in with `hf auth login` when it is private. {_INSTEAD}"
        ) from error
    except network_errors() as error:
        raise ConfigError(
            f"{name} is neither a directory here nor in the hub's cache, and the hub cannot be "
            f"reached: {first_line(error).rstrip('.')}. {_INSTEAD}"
        ) from error
    names = [file.rfilename for file in info.siblings or ()]
    weights = _weights(names)
    if "config.json" not in names or not weights:
        raise ConfigError(
            f"{name} has no {'weights' if 'config.json' in names else 'config.json'} that load "
            f"without its own code: config.json and model.safetensors or pytorch_model.bin"
        )
    return [file for file in names if _SETTINGS.fullmatch(file)], weights
