"""The cache folder: copies of remote files, downloads and the demo's pictures."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$CIT_CACHE`, else `$XDG_CACHE_HOME/cit`, else `~/.cache/cit`; it may not exist."""
    if configured := os.environ.get("CIT_CACHE"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cit"
