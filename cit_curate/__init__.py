"""Choose the image-caption pairs worth training on; usable without ever training."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cit_curate.config import CurateConfig, EngineConfig, MetadataConfig, TextTowerConfig
    from cit_curate.curation.curate import curate
    from cit_curate.curation.curator import Curator
    from cit_curate.curation.selection import keep_similar
    from cit_curate.errors import (
        BadInputError,
        CitError,
        ConfigError,
        DamagedError,
        NotFiniteError,
        PeerLostError,
        QueryError,
        ResourceError,
        ShortfallError,
    )
    from cit_curate.metadata.entries import load_metadata
    from cit_curate.metadata.lines import MetadataEntry
    from cit_curate.pool.mixture import PoolMixture
    from cit_curate.pool.pool import Pool
    from cit_curate.run.exports.counts_import import import_counts
    from cit_curate.run.exports.export import export_counts, export_webdataset
    from cit_curate.run.ledger import Run
    from cit_curate.run.report.page import build_report
    from cit_curate.run.subset import subset_pool
    from cit_curate.sources.columns import Columns
    from cit_curate.text_encoder.encoder import TextEncoder

__all__ = [
    "BadInputError",
    "CitError",
    "Columns",
    "ConfigError",
    "CurateConfig",
    "Curator",
    "DamagedError",
    "EngineConfig",
    "MetadataConfig",
    "MetadataEntry",
    "NotFiniteError",
    "PeerLostError",
    "Pool",
    "PoolMixture",
    "QueryError",
    "ResourceError",
    "Run",
    "ShortfallError",
    "TextEncoder",
    "TextTowerConfig",
    "build_report",
    "curate",
    "export_counts",
    "export_webdataset",
    "import_counts",
    "keep_similar",
    "load_metadata",
    "subset_pool",
]

# Imported at first use: Arrow, DuckDB and torch take seconds.
_MODULES = {
    "BadInputError": "cit_curate.errors",
    "CitError": "cit_curate.errors",
    "Columns": "cit_curate.sources.columns",
    "ConfigError": "cit_curate.errors",
    "CurateConfig": "cit_curate.config",
    "Curator": "cit_curate.curation.curator",
    "DamagedError": "cit_curate.errors",
    "EngineConfig": "cit_curate.config",
    "MetadataConfig": "cit_curate.config",
    "MetadataEntry": "cit_curate.metadata.lines",
    "NotFiniteError": "cit_curate.errors",
    "PeerLostError": "cit_curate.errors",
    "Pool": "cit_curate.pool.pool",
    "PoolMixture": "cit_curate.pool.mixture",
    "QueryError": "cit_curate.errors",
    "ResourceError": "cit_curate.errors",
    "Run": "cit_curate.run.ledger",
    "ShortfallError": "cit_curate.errors",
    "TextEncoder": "cit_curate.text_encoder.encoder",
    "TextTowerConfig": "cit_curate.config",
    "build_report": "cit_curate.run.report.page",
    "curate": "cit_curate.curation.curate",
    "export_counts": "cit_curate.run.exports.export",
    "export_webdataset": "cit_curate.run.exports.export",
    "import_counts": "cit_curate.run.exports.counts_import",
    "keep_similar": "cit_curate.curation.selection",
    "load_metadata": "cit_curate.metadata.entries",
    "subset_pool": "cit_curate.run.subset",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
