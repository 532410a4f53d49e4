"""The names of a run's folders and shards."""

from pathlib import Path

# In an export, the folder of the manifests and rejects. Two underscores: `datasets` takes no file
# below such a folder for data.
MANIFESTS = "__manifests__"


def step_folder(outer_step: int) -> str:
    """The folder name of an outer step, `step=000012`."""
    return f"step={outer_step:06d}"


def shard_folder(run_folder: Path, outer_step: int) -> Path:
    """The folder of the shards of an outer step."""
    return run_folder / "shards" / step_folder(outer_step)


def lane_prefix(lane: int) -> str:
    """The first part of the names of a lane's shards, `lane00003`."""
    return f"lane{lane:05d}"


def shard_name(prefix: str, number: int) -> str:
    """The name of a shard, `lane00003-000012.tar`."""
    return f"{prefix}-{number:06d}.tar"
