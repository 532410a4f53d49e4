"""The files of a trained model that somebody else needs, in one folder with a model card."""

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

# By name: what else lies in a checkpoint (optimizer.safetensors, trainer.json) or in a folder of
# somebody's own is nobody else's business.
_PUBLIC = re.compile(
    r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(txt|json)|merges\.txt|sentencepiece\.bpe\.model|spiece\.model"
    r"|processor_config\.json|preprocessor_config\.json"
)
_CHECKPOINT = re.compile(r"update-(\d+)")


@dataclass(frozen=True)
class ExportedModel:
    """A folder that is ready for others.

    Attributes:
        folder: Where it lies.
        files: Of the folder, sorted by path.
        update: Updates that the weights have seen; None = not known.
        run: The run that trained them; None = not known.
    """

    folder: Path
    files: tuple[FileEntry, ...]
    update: int | None
    run: Path | None


def export_model(model: Path, out: Path, *, repo: str, license: str = "") -> ExportedModel:
    """Copy weights, configuration, tokenizer and processor, and write a model card beside them.

    Args:
        model: A run (its best checkpoint, else its last), a checkpoint, or a model's folder.
        out: The folder to make; absent.
        repo: Name of the repository, `org/name`, for the card.
        license: The hub's identifier of a licence; "" = none is stated.

    Raises:
        ConfigError: There is no dual encoder, or `out` is there already.
        DamagedError: A file differs from its checkpoint's manifest.
    """
    from cit_train.hub.model_card import write_model_card
    from cit_train.models.load import checkpoint_folder

    if out.exists():
        raise ConfigError(f"{out} is there already; choose another --out")
    source = checkpoint_folder(model).resolve()
    names = _public_files(source)
    run, update = _origin(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as temporary:
        for name in names:
            if name.endswith("config.json"):
                # A local folder is no use to others, and says too much of its owner.
                write_json(temporary / name, _without_origins(read_json(source / name)))
            else:
                shutil.copyfile(source / name, temporary / name)
        write_model_card(temporary, repo=repo, run=run, update=update, license=license)
    paths = sorted(path for path in out.iterdir())
    files = tuple(describe_file(path, out, rows=0) for path in paths)
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
    """The run that a checkpoint lies in, and its update."""
    found = _CHECKPOINT.fullmatch(source.name)
    folder = source.parent.parent
    if found is None or source.parent.name != "checkpoints" or not (folder / "manifests").is_dir():
        return None, None
    return Run.open(folder), int(found[1])


def _without_origins(value: Any) -> Any:
    """JSON without the names that transformers notes of where a part was loaded from."""
    if isinstance(value, Mapping):
        return {
            name: _without_origins(entry)
            for name, entry in value.items()
            if name not in ("_name_or_path", "name_or_path")
        }
    return [_without_origins(entry) for entry in value] if isinstance(value, list) else value
