"""The public files of a trained model, in one folder with a model card."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cit_curate.errors import ConfigError
from cit_curate.run.ledger import Run
from cit_curate.storage.durable import (
    FileEntry,
    atomic_folder,
    check_listing,
    describe_file,
    read_json,
    write_json,
)

__all__ = ["ExportedModel", "export_model"]

# An allow list: other files of a checkpoint (optimizer.safetensors, trainer.json) or of a user's
# folder stay private.
_PUBLIC = re.compile(
    r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(txt|json)|merges\.txt|sentencepiece\.bpe\.model|spiece\.model"
    r"|processor_config\.json|preprocessor_config\.json"
)
_CHECKPOINT = re.compile(r"update-(\d+)")


@dataclass(frozen=True)
class ExportedModel:
    """A model's folder that is ready to be published.

    Attributes:
        folder: The path of the folder.
        files: The files of the folder, sorted by path.
        update: The update of the weights; None = unknown.
        run: The run that trained them; None = unknown.
    """

    folder: Path
    files: tuple[FileEntry, ...]
    update: int | None
    run: Path | None


def export_model(model: Path, out: Path, *, repo: str, license: str = "") -> ExportedModel:
    """Copy weights, configuration, tokenizer and processor, and write a model card beside them.

    Args:
        model: A run (its best checkpoint, else its last), a checkpoint, or a model's folder.
        out: The folder to create, which must not exist.
        repo: The name of the repository, `org/name`, for the card.
        license: The hub's identifier of the licence; "" = none stated.

    Raises:
        ConfigError: There is no dual encoder, or `out` exists already.
        DamagedError: A file differs from its checkpoint's manifest.
    """
    from cit_train.hub.model_card import write_model_card
    from cit_train.models.load import checkpoint_folder

    if out.exists():
        raise ConfigError(f"{out} exists already; choose another --out")
    source = checkpoint_folder(model).resolve()
    names = _public_files(source)
    run, update = _origin(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as temporary:
        for name in names:
            if name.endswith("config.json"):
                # Local paths are useless to others and reveal the owner's folders.
                write_json(temporary / name, _without_origins(read_json(source / name)))
            else:
                shutil.copyfile(source / name, temporary / name)
        write_model_card(temporary, repo=repo, run=run, update=update, license=license)
    files = tuple(describe_file(path, out, rows=0) for path in sorted(out.iterdir()))
    return ExportedModel(out, files, update, run.path if run else None)


def _public_files(source: Path) -> list[str]:
    if (source / "manifest.json").is_file():
        check_listing(source / "manifest.json")
    names = sorted(p.name for p in source.iterdir() if p.is_file() and _PUBLIC.fullmatch(p.name))
    config = read_json(source / "config.json") if "config.json" in names else {}
    if not isinstance(config, dict) or not config.keys() >= {"vision_config", "text_config"}:
        raise ConfigError(f"{source} is not a dual encoder: its config.json has no two towers")
    return names


def _origin(source: Path) -> tuple[Run | None, int | None]:
    """The run that a checkpoint belongs to, and its update."""
    match = _CHECKPOINT.fullmatch(source.name)
    folder = source.parent.parent
    if match is None or source.parent.name != "checkpoints" or not (folder / "manifests").is_dir():
        return None, None
    return Run.open(folder), int(match[1])


def _without_origins(value: Any) -> Any:
    """JSON without the paths that transformers records of where a part was loaded from."""
    if isinstance(value, Mapping):
        return {
            name: _without_origins(entry)
            for name, entry in value.items()
            if name not in ("_name_or_path", "name_or_path")
        }
    return [_without_origins(entry) for entry in value] if isinstance(value, list) else value
