"""Functions of the user's own, by the name that a flag gives them."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from cit_curate.errors import ConfigError


def own_function(name: str, *, flag: str) -> Callable[..., Any]:
    """The function `package.module:function` or `file.py:function`.

    Args:
        name: Its name.
        flag: What asks for it, for messages.

    Raises:
        ConfigError: There is no such function, or its module does not run.
    """
    module_name, _, function_name = name.rpartition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{flag} {name}: it reads package.module:function or file.py:function")
    try:
        module = _module(module_name)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{flag} {name} cannot be imported: {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno})"
        ) from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{flag} {name}: {module_name} has no function {function_name}")
    found: Callable[..., Any] = function
    return found


@cache
def _module(module_name: str) -> ModuleType:
    """The module, run once; what lies beside it, or in the current folder, can be imported."""
    path = Path(module_name).resolve()
    before = [*sys.path]
    try:
        if path.suffix != ".py":
            sys.path.insert(0, "")
            return importlib.import_module(module_name)
        sys.path.insert(0, str(path.parent))
        # By its path: a file may have the name of a module that is imported already.
        spec = importlib.util.spec_from_file_location(f"own_functions_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path[:] = before
