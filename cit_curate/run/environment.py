"""The environment of a run: versions, platform, command."""

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "cit",
    "torch",
    "transformers",
    "timm",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "pyarrow",
    "duckdb",
    "webdataset",
    "pillow",
)


def describe_environment() -> dict[str, Any]:
    """The versions that decide a run's numbers, the machine type, and the command line."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": versions,
        "command": sys.argv,
        "git_commit": _git_commit(),
    }


def cit_version() -> str | None:
    """The version of this package; None = it is not installed."""
    try:
        return metadata.version("cit")
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None = it is installed."""
    folder = Path(__file__).parent.parent
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return None
    command = [git, "-C", str(folder), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
