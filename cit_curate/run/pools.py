"""The pools that a run was made from, opened by its configuration or by `--pool`."""

import logging
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cit_curate.errors import ConfigError
from cit_curate.pool.mixture import PoolMixture, parse_pool
from cit_curate.pool.pool import Pool
from cit_curate.storage.remote import remote_url

if TYPE_CHECKING:
    from cit_curate.run.ledger import Run

logger = logging.getLogger(__name__)


def mixture_config(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The pools of a mixture as a run's `config.json` lists them; empty for a run of one pool."""
    pools = config.get("pools")
    return tuple(pools) if isinstance(pools, list) else ()


def run_pool(run: "Run", paths: Sequence[str | Path] = ()) -> Pool | PoolMixture | None:
    """The pool or mixture of a run.

    Args:
        run: The run.
        paths: The pool folders, as `--pool` has them; empty = those in the run's configuration.

    Returns:
        None when no path was given and a configured pool is no longer there, or is in a store.

    Raises:
        ConfigError: The paths are not those of the run's pools.
    """
    mixed = mixture_config(run.config)
    if mixed:
        return _mixture(run, mixed, [str(path) for path in paths])
    if len(paths) > 1:
        raise ConfigError(f"--pool is given {len(paths)} times; {run.path} has one pool")
    if paths:
        return Pool.open(paths[0])
    configured = run.config.get("pool")
    if not isinstance(configured, str) or _is_in_store(run, configured):
        return None
    return Pool.open(configured) if _is_there(configured) else None


def _mixture(
    run: "Run", configured: Sequence[Mapping[str, Any]], paths: Sequence[str]
) -> PoolMixture | None:
    """All pools of a run's mixture, under the names that its ledger has."""
    if paths:
        opened = []
        for name, path, _ in map(parse_pool, paths):
            pool = Pool.open(path)
            opened.append((name or pool.name, pool))
    elif any(_is_in_store(run, pool["path"]) for pool in configured):
        return None
    elif all(_is_there(pool["path"]) for pool in configured):
        opened = [(str(pool["name"]), Pool.open(pool["path"])) for pool in configured]
    else:
        return None
    weights = {str(pool["name"]): Fraction(str(pool["weight"])) for pool in configured}
    if sorted(name for name, _ in opened) != sorted(weights):
        names = ", ".join(name for name, _ in opened)
        raise ConfigError(
            f"{run.path} was made from the pools {', '.join(weights)}, and --pool names {names}; "
            "give --pool once for each, as NAME:POOL where its own name is another"
        )
    return PoolMixture([(name, pool, weights[name]) for name, pool in opened])


def _is_in_store(run: "Run", path: str) -> bool:
    """Whether a configured pool is in a store; a warning says so.

    The store is not contacted, since the run's folder, and so the URL, may come from a stranger.
    """
    if remote_url(path) is None:
        return False
    logger.warning("a pool of %s is %s: name it with --pool to read it", run.path, path)
    return True


def _is_there(path: str) -> bool:
    return (Path(path) / "pool.json").is_file()
