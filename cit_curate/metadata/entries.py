"""The metadata of a run: a built-in list or the user's own file."""

import difflib
import logging
from pathlib import Path

from cit_curate.config import MetadataConfig
from cit_curate.errors import ConfigError
from cit_curate.metadata.built_in import BUILT_IN_NAMES, built_in_entries
from cit_curate.metadata.class_files.read import read_class_file
from cit_curate.metadata.class_list import ClassList
from cit_curate.metadata.lines import MetadataEntry, parse_entries

__all__ = ["MetadataEntry", "is_built_in", "load_metadata", "parse_entries", "read_metadata"]

logger = logging.getLogger(__name__)


def load_metadata(config: MetadataConfig) -> list[MetadataEntry]:
    """The entries of `read_metadata`; its warnings are logged.

    Raises:
        ConfigError: As `read_metadata`.
    """
    classes = read_metadata(config)
    for warning in classes.warnings:
        logger.warning("%s", warning)
    return list(classes.entries)


def read_metadata(config: MetadataConfig, *, flag: str = "--metadata") -> ClassList:
    """The classes of a built-in list or of a file; equal names are merged. Nothing is logged.

    A built-in name (`imagenet`, another task, `mt`, `imagenet21k`) takes precedence over a file of
    that name in the current folder, so that a recipe means the same everywhere; `./imagenet` is the
    file.

    Args:
        config: The list, its column and its prompts.
        flag: The flag that names the list, for messages; `FLAG-column` gives its column.

    Returns:
        Entries with distinct names. With `template_metadata` each has the prompts of its tasks.

    Raises:
        ConfigError: There is no such list or file, it cannot be read as class names or lacks the
            column, or a library that ships the names is missing.
    """
    name = config.metadata
    if not name:
        raise ConfigError(
            f"{flag} is missing: give a file with one class name a line, or a built-in list "
            "(`cit metadata list`)"
        )
    if is_built_in(name):
        if config.metadata_column:
            raise ConfigError(
                f"{flag}-column is for a CSV; {name!r} is a built-in list (./{name} is a file)"
            )
        entries = built_in_entries(name, with_prompts=config.template_metadata)
        return ClassList(name=name, entries=tuple(entries))
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"class names: there is no file {path}{_nearest(path)}")
    if config.template_metadata:
        raise ConfigError(
            f"--template-metadata: {path} is a file, which has no prompts; give them with "
            "--templates"
        )
    return read_class_file(path, config.metadata_column, flag=f"{flag}-column").merged()


def _nearest(path: Path) -> str:
    """The end of an error message: no built-in list has the name; the closest match."""
    files = {file.name: str(file) for file in path.parent.glob("*") if file.is_file()}
    close = difflib.get_close_matches(path.name.lower(), [*BUILT_IN_NAMES, *files], n=1)
    hint = f"; did you mean {files.get(close[0], close[0])!r}?" if close else ""
    return f", nor a built-in list of that name{hint} (`cit metadata list`)"


def is_built_in(name: str) -> bool:
    """Whether `--metadata NAME` means a built-in list and not a file."""
    return name in BUILT_IN_NAMES
