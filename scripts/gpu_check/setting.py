"""What every check is given, and how it says that it cannot be done here."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.gpu_check.outcomes import Finding

ROOT = Path(__file__).parents[2]


class SkippedError(Exception):
    """The check cannot be done on this machine; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What every check is given.

    Attributes:
        device: `cuda`, or `cpu` for a rehearsal.
        folder: A folder for what checks make; later checks find what earlier ones left there.
        is_quick: Small sizes, for a rehearsal.
    """

    device: str
    folder: Path
    is_quick: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether this is no rehearsal."""
        return self.device != "cpu"

    def size(self, whole: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.is_quick else whole

    def need_gpu(self) -> None:
        """Skip the check in a rehearsal.

        Raises:
            SkippedError: This is one.
        """
        if not self.on_gpu:
            raise SkippedError("needs a GPU")


@dataclass(frozen=True)
class Check:
    """One check, which runs in a process of its own.

    Attributes:
        name: Its name in the table.
        place: Its function, as `module.function` of this package, which only its process imports.
        usual_seconds: What it takes on a GPU; with less left, it is not begun.
        limit_seconds: What it may take; it is killed then, and has failed.
    """

    name: str
    place: str
    usual_seconds: float
    limit_seconds: float

    @property
    def function(self) -> Callable[[Setting], Finding]:
        """What is done."""
        module, _, name = self.place.rpartition(".")
        function: Callable[[Setting], Finding]
        function = getattr(importlib.import_module(f"scripts.gpu_check.{module}"), name)
        return function

    @property
    def log_name(self) -> str:
        """The name of the file with what its process says."""
        return f"{self.name.replace(' ', '-')}.log"


def own_environment() -> dict[str, str]:
    """The environment of every process: this checkout's packages, and no network."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
