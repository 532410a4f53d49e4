"""The metadata of a run: a built-in list or the user's own file."""

import difflib
from pathlib import Path

from cit_curate.config import MetadataConfig
from cit_curate.errors import ConfigError
from cit_curate.metadata.built_in import BUILT_IN_NAMES, built_in_entries
from cit_curate.metadata.lines import (
    MetadataEntry,
    format_entry,
    merge_entries,
    parse_entries,
    read_entries,
    read_utf8,
)

__all__ = [
    "MetadataEntry",
    "format_entry",
    "is_built_in",
    "load_metadata",
    "merge_entries",
    "parse_entries",
    "read_entries",
    "read_utf8",
]


def load_metadata(config: MetadataConfig) -> list[MetadataEntry]:
    """The entries of a built-in list or of a metadata file; equal names are merged.

    A built-in name (`imagenet`, another task, `mt`, `imagenet21k`) takes precedence over a file of
    that name in the current folder, so that a recipe means the same everywhere; `./imagenet` is the
    file.

    Returns:
        Entries with distinct names. With `template_metadata` each has the prompts of its tasks.

    Raises:
        ConfigError: There is no such list or file, it is empty or lacks the column, or a library
            that ships the names is missing.
    """
    name = config.metadata
    if not name:
        raise ConfigError(
            "--metadata is missing: give a file with one class name a line, or a built-in list "
            "(`cit metadata list`)"
        )
    if is_built_in(name):
        if config.metadata_column:
            raise ConfigError(
                f"--metadata-column is for a CSV; {name!r} is a built-in list (./{name} is a file)"
            )
        return built_in_entries(name, with_prompts=config.template_metadata)
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"class names: there is no file {path}{_nearest(path)}")
    if config.template_metadata:
        raise ConfigError(
            f"--template-metadata: {path} is a file, which has no prompts; give them with "
            "--templates"
        )
    return read_entries(path, config.metadata_column)


def _nearest(path: Path) -> str:
    """The end of an error message: no built-in list has the name; the closest match."""
    files = {file.name: str(file) for file in path.parent.glob("*") if file.is_file()}
    close = difflib.get_close_matches(path.name.lower(), [*BUILT_IN_NAMES, *files], n=1)
    hint = f"; did you mean {files.get(close[0], close[0])!r}?" if close else ""
    return f", nor a built-in list of that name{hint} (`cit metadata list`)"


def is_built_in(name: str) -> bool:
    """Whether `--metadata NAME` means a built-in list and not a file."""
    return name in BUILT_IN_NAMES
