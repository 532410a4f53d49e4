"""Settings that differ in a resumed run: which may, which are refused, which were allowed."""

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

# These change where and how fast a run computes, never its results.
_FREE_TO_CHANGE = frozenset(
    {
        "num_workers",
        "ahead_workers",
        "curate_device",
        "keep_shards",
        "stream_seconds",
        "feature_cache",
        "feature_cache_bytes",
        "vector_cache_bytes",
        "device",
        "tensorboard",
        "save_every",
        "save_minutes",
        "peer_seconds",
        "barrier_seconds",
    }
)
# The saved state has one scan for each lane.
_NEVER_TO_CHANGE = frozenset({"lanes"})
# Key in config.json of the changes that were allowed.
CHANGES = "changes"


@dataclass(frozen=True)
class Change:
    """A setting that was changed when a run was resumed.

    Attributes:
        outer_step: The first outer step with the new value.
        update: Updates made with the old value.
        key: The setting's key in config.json.
        then: The old value.
        now: The new value.
    """

    outer_step: int
    update: int
    key: str
    then: Any
    now: Any


def adopt_settings(run: Run, settings: Mapping[str, Any], allowed: Sequence[str]) -> bool:
    """Check that a run resumes with its own settings, or record the changes that are allowed.

    A run with changed settings resumes from its last commit: a state saved in the middle of an
    outer step belongs to the old settings, and is removed.

    Args:
        run: The resumed run.
        settings: Its new settings.
        allowed: The keys of the settings that may differ.

    Returns:
        Whether any recorded setting has changed.

    Raises:
        ConfigError: A setting that is not allowed differs, or a key in `allowed` is unknown.
    """
    old = run.config
    changes = old.pop(CHANGES, [])
    # A field that an older version lacks had the effect of its default, and there was one engine.
    old = {**flat(RunConfig()), "vision_engine": "torch", **_version_of(run), **old}
    _check_known(allowed, old.keys() | settings.keys())
    commits = run.commits()
    update = commits[-1].update if commits else 0
    changed = [
        Change(len(commits), update, key, old.get(key), settings.get(key))
        for key in sorted(old.keys() | settings.keys())
        if old.get(key) != settings.get(key) and key not in _FREE_TO_CHANGE
    ]
    refused = [each for each in changed if each.key not in allowed or each.key in _NEVER_TO_CHANGE]
    if refused:
        raise ConfigError(_refusal(run, refused))
    if changed:
        remove_mid_step(run)
        # One write: the settings and the record of their change belong together.
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
    changes = "; ".join(f"{each.key}: {each.then!r} then, {each.now!r} now" for each in refused)
    keys = [each.key for each in refused if each.key not in _NEVER_TO_CHANGE]
    allow = f", or continue anyway with --allow-change {' '.join(keys)}" if keys else ""
    return (
        f"{run.path} was started with other settings, so --resume would not continue the same "
        f"run. {changes}. Give the same flags, or another --out{allow}"
    )
