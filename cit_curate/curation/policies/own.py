"""A policy of the user's own: a Python function, by its name."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cit_curate.curation.policies.decision import Candidates, Decision, Policy
from cit_curate.errors import ConfigError

OWN = "policy"


def load_policy(name: str) -> Policy:
    """The policy `package.module:function` or `file.py:function`.

    The function gets the candidates and the decision so far. It returns another decision; or bool
    [batch], the captions that may be kept; or float32 [batch], the rank to choose the best by.

    Raises:
        ConfigError: There is no such function.
    """
    module_name, _, function_name = name.rpartition(":")
    if not module_name or not function_name:
        raise ConfigError(f"--policy {name}: it reads package.module:function or file.py:function")
    function = getattr(_module(module_name, name), function_name, None)
    if not callable(function):
        raise ConfigError(f"--policy {name}: {module_name} has no function {function_name}")
    found: Callable[[Candidates, Decision], Any] = function

    def policy(candidates: Candidates, decision: Decision) -> Decision:
        result = found(candidates, decision)
        if isinstance(result, Decision):
            return result
        values = np.asarray(result)
        if values.shape != (len(candidates),):
            raise ConfigError(
                f"--policy {name} returned values of shape {values.shape} for "
                f"{len(candidates)} captions; it returns a decision, or one value a caption"
            )
        if values.dtype == np.bool_:
            return decision.leave_out(~values, OWN)
        return decision.ranked(values.astype(np.float32))

    return policy


def _module(module_name: str, name: str) -> Any:
    path = Path(module_name)
    before = [*sys.path]
    try:
        if path.suffix == ".py":
            sys.path.insert(0, str(path.resolve().parent))
            return importlib.import_module(path.stem)
        sys.path.insert(0, "")
        return importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"--policy {name} cannot be imported: {error}") from error
    finally:
        sys.path[:] = before
