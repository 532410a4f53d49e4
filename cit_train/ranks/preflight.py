"""System limits that would end a run hours later, checked before any work."""

import logging
import resource
import shutil
from pathlib import Path

from cit_curate.errors import ResourceError
from cit_train.config import RunConfig

# Files that a run opens at once: shards, parts of a pool, packages, pipes of workers.
WANTED_FILES = 1_024
_LEAST_FILES = 256
# Batches that a loader worker makes ahead.
_BATCHES_PER_WORKER = 2
logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where torch puts it


def allow_open_files() -> None:
    """Raise the limit on open files as far as this process may.

    Raises:
        ResourceError: The limit stays too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft != resource.RLIM_INFINITY and soft < _LEAST_FILES:
        raise ResourceError(
            f"this process may open {soft} files, and a run needs {_LEAST_FILES}; raise the limit: "
            f"ulimit -n {WANTED_FILES}"
        )


def has_shared_memory(config: RunConfig, *, side: int, folder: Path = _SHARED_MEMORY) -> bool:
    """Whether the views of the loader's workers fit into shared memory; logs a warning if not.

    Args:
        config: The config of the run.
        side: The side of a view, in pixels.
        folder: The mount point of shared memory.
    """
    workers = config.train.num_workers if config.train.vision_features == "live" else 0
    # Those that are trained on stay until the next update has its own.
    held = 2 * config.curate.lanes * config.train.accumulate
    num_batches = workers * _BATCHES_PER_WORKER + held if workers else 0
    needed = num_batches * config.curate.batch_size * 3 * side**2
    if not needed or not folder.is_dir():
        return True
    free = shutil.disk_usage(folder).free
    if needed > free:
        logger.warning(
            "--num-workers %d need about %s bytes of shared memory, and %s has %s free: images go "
            "through pipes, which is slower. Enlarge it (docker run --shm-size %dg), or use fewer "
            "workers",
            *(workers, f"{needed:,}", folder, f"{free:,}", needed // 10**9 + 1),
        )
    return needed <= free
