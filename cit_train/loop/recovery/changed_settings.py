"""What may differ when a run is taken up again, what is refused, and what was allowed."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cit_curate.errors import ConfigError
from cit_curate.run.environment import cit_version
from cit_curate.run.ledger import Run
from cit_curate.storage.durable import write_json
from cit_train.config import RunConfig, flat
from cit_train.loop.recovery.mid_step import remove_mid_step

# It changes where and how fast, never what.
_FREE_TO_CHANGE = frozenset(
    {
        "num_workers",
        "ahead_workers",
        "curate_device",
        "keep_shards",
        "stream_seconds",
        "feature_cache",
        "feature_cache_bytes",
        "device",
        "tensorboard",
        "save_every",
        "save_minutes",
        "peer_seconds",
        "barrier_seconds",
    }
)
# What is saved of a run has one scan for each lane.
_NEVER_TO_CHANGE = frozenset({"lanes"})
# Where config.json keeps the changes that were allowed.
CHANGES = "changes"


@dataclass(frozen=True)
class Change:
    """A setting that a run went on with another value of.

    Attributes:
        outer_step: The first outer step with the new value.
        update: Updates made before.
        key: The setting, as config.json names it.
        then: Its value before.
        now: Its value from here on.
    """

    outer_step: int
    update: int
    key: str
    then: Any
    now: Any


def take_over_settings(run: Run, settings: Mapping[str, Any], allowed: Sequence[str]) -> bool:
    """Make sure that a run goes on with its settings, or write down those that may be others.

    With another setting a run goes on from its last commit: the middle of an outer step was made
    with the old one, and is removed.

    Args:
        run: The run that is resumed.
        settings: What it would go on with.
        allowed: The keys of those that may differ.

    Returns:
        Whether any differs.

    Raises:
        ConfigError: Another one differs, or `allowed` has no such key.
    """
    old = run.config
    changes = old.pop(CHANGES, [])
    # A run of an older version lacks a field, and did what the default does.
    old = {**flat(RunConfig()), **_version_of(run), **old}
    _check_known(allowed, old.keys() | settings.keys())
    commits = run.commits()
    place = (len(commits), commits[-1].update if commits else 0)
    changed = [
        Change(*place, name, old.get(name), settings.get(name))
        for name in sorted(old.keys() | settings.keys())
        if old.get(name) != settings.get(name) and name not in _FREE_TO_CHANGE
    ]
    refused = [each for each in changed if each.key not in allowed or each.key in _NEVER_TO_CHANGE]
    if refused:
        raise ConfigError(_refusal(run, refused))
    if changed:
        remove_mid_step(run)
        # The settings and what is told of them change in one step.
        changes = [*changes, *map(asdict, changed)]
        write_json(run.path / "config.json", {**settings, CHANGES: changes})
    return bool(changed)


def _version_of(run: Run) -> dict[str, Any]:
    version = run.environment.get("packages", {}).get("cit", cit_version())
    return {"cit_version": version}


def _check_known(allowed: Sequence[str], known: set[str]) -> None:
    for key in allowed:
        if key in known:
            continue
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"--allow-change {key}: config.json has no such key{hint}")


def _refusal(run: Run, refused: Sequence[Change]) -> str:
    told = "; ".join(f"{each.key}: {each.then!r} then, {each.now!r} now" for each in refused)
    keys = [each.key for each in refused if each.key not in _NEVER_TO_CHANGE]
    allow = f", or go on all the same with --allow-change {' '.join(keys)}" if keys else ""
    return (
        f"{run.path} was started with other settings, so --resume would not go on with the "
        f"same run. {told}. Give the same flags, or another --out{allow}"
    )
