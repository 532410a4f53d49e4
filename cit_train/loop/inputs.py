"""The inputs that a config names: pools, a selection, class names, the run folder.

Nothing here imports torch, so a misspelt name is reported at once.
"""

from pathlib import Path

from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import read_metadata
from cit_curate.pool.mixture import PoolMixture, parse_pool
from cit_curate.run.ledger import Run
from cit_curate.storage.remote import remote_url
from cit_train.config import RunConfig


def check_inputs(config: RunConfig, out: Path, *, resume: bool, overwrite: bool) -> None:
    """Check the names that `open_session` would refuse, except those of pools in a remote store.

    Raises:
        ConfigError: A pool, the selection or the class names are missing, or `out` is not free.
        DamagedError: A pool lacks a file.
    """
    pools = [config.pool] if isinstance(config.pool, str) else config.pool
    if not any(remote_url(path) for _, path, _ in map(parse_pool, pools)):
        open_pools(config)
    open_selection(config, out)
    if not resume:
        Run.check_free(out, overwrite=overwrite)
    if config.curate_as.curation != "none" or config.metadata.metadata:
        read_metadata(config.metadata)


def open_pools(config: RunConfig) -> PoolMixture:
    """The pools that the config names; a pool without images is refused."""
    if not config.pool:
        raise ConfigError("--pool is missing: give a folder made by `cit pool build`")
    pools = PoolMixture.open(config.pool)
    for each in pools:
        if each.pool.has_images:
            continue
        raise ConfigError(
            f"{each.pool.path} names no images, and training needs them; "
            "curate without training with `cit curate`, or build the pool with --image COLUMN"
        )
    if pools.single is None and (config.selection or config.max_sample is not None):
        flag = "--selection" if config.selection else "--max-sample"
        raise ConfigError(
            f"{flag} cuts pairs out of one pool, and --pool names {len(pools)}; make one pool "
            "first: export what a run selected to a folder (cit export RUN PAIRS) and build a pool "
            "from it (cit pool build PAIRS --image-id __key__ --out POOL)"
        )
    return pools


def open_selection(config: RunConfig, out: Path) -> Run | None:
    """The run whose selected pairs are trained on; None = curate.

    Raises:
        ConfigError: It is not a run, has selected nothing, or is in `out` itself.
    """
    if not config.selection:
        return None
    selection = Run.open(Path(config.selection))
    if selection.path.resolve() == out.resolve():
        raise ConfigError(
            f"--selection and --out are both {config.selection}; the new run needs a folder of "
            "its own: give another --out"
        )
    if not selection.commits():
        raise ConfigError(
            f"--selection: {config.selection} has no committed outer step, so it has selected "
            "nothing yet"
        )
    return selection
