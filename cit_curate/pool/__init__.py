"""The pool: image-caption pairs in Parquet parts, with a manifest that tells when they changed."""

from cit_curate.pool.order import ScanOrder
from cit_curate.pool.pool import Pool

__all__ = ["Pool", "ScanOrder"]
