"""The pool: image-caption pairs in Parquet parts, with a manifest that tells when they changed."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cit_curate.pool.order import ScanOrder
    from cit_curate.pool.pool import Pool

__all__ = ["Pool", "ScanOrder"]

# They import Arrow and DuckDB, which `cit pool build --help` must not wait for.
_HOMES = {"Pool": "cit_curate.pool.pool", "ScanOrder": "cit_curate.pool.order"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
