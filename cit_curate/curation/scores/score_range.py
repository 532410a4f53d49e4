"""The unit of work of other processes: the scores of a range of a lane's captions.

The rule of a selection goes batch by batch in scan order. The costly part, embedding and searching,
depends on each caption alone, so any process may score any range, in any order. A process opens
pools, metadata and text tower by their paths, checks that they are those of the command, and keeps
them open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.scores.broken_vectors import best_entries
from cit_curate.curation.scores.exact import Scores
from cit_curate.curation.scores.scanned_texts import scanned_texts
from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import read_metadata
from cit_curate.metadata.stored_index import load_vectors
from cit_curate.metadata.vectors import (
    distinct_prompts,
    embed_metadata,
    embed_or_nan,
    metadata_fingerprint,
)
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import Float32, PoolCursor
from cit_curate.storage.vector_cache import VectorCache
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.texts import Texts
from indexes.build import build_index
from indexes.protocol import MetadataIndex


class PoolPath(NamedTuple):
    """A pool of a mixture, for another process to open."""

    name: str
    path: str
    share: Fraction
    fingerprint: str


@dataclass(frozen=True)
class Tower:
    """A text tower, for another process to load.

    Attributes:
        text: The text tower.
        device: The device that it computes on.
        num_threads: The threads of torch in that process; 0 = torch's own choice.
        kept: The folder of the vectors kept beside the pools; None = none are kept.
    """

    text: TextTowerConfig
    device: str
    num_threads: int = 0
    kept: Path | None = None


@dataclass(frozen=True)
class ScoreSource:
    """All that a score depends on.

    Attributes:
        pools: The pools.
        config: The rules; a score depends on the scan order, and on no threshold.
        metadata: The class names and their prompts.
        metadata_fingerprint: The fingerprint that the metadata must have.
        tower: The text tower.
        index_kind: The backend of the index.
        encoder: The fingerprint that the encoder must have; "" = any.
        index: The folder of the metadata's stored vectors; None = each process embeds the metadata.
    """

    pools: tuple[PoolPath, ...]
    config: CurateConfig
    metadata: MetadataConfig
    metadata_fingerprint: str
    tower: Tower
    index_kind: str
    encoder: str = ""
    index: Path | None = None


@dataclass(frozen=True)
class ScoreRange:
    """Scan positions `start` to `stop` - 1 of a lane."""

    source: ScoreSource
    lane: int
    start: int
    stop: int


@dataclass(frozen=True)
class EmbedTask:
    """Texts for another process to embed."""

    tower: Tower
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Embedded:
    """The fingerprint of an encoder, and its vectors: float32 [texts, dim]."""

    fingerprint: str
    vectors: Float32


class PrecomputedEmbedder:
    """An `Embedder` of texts that were embedded before: the prompts, for the index."""

    device = "cpu"
    tokenizer_key = ""

    def __init__(self, texts: Sequence[str], embedded: Embedded) -> None:
        self.fingerprint = embedded.fingerprint
        self._vectors = embedded.vectors
        self._row = {text: row for row, text in enumerate(texts)}

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [texts, dim], unit norm; raises KeyError for any other text."""
        return self._vectors[[self._row[text] for text in texts]]

    def embed_on_device(self, texts: Texts) -> Float32:
        """As `embed`."""
        return self.embed(texts.array.to_pylist())


def embed_texts(task: EmbedTask) -> Embedded:
    """Embed texts with the encoder of this process; NaN where a text has no usable vector."""
    embedded = _embedded(task.tower, task.texts)
    _write_kept(task.tower)
    return embedded


def score_range(task: ScoreRange) -> Scores:
    """The scores of a range of captions.

    Raises:
        ConfigError: A pool, the metadata or the text tower differs from those of the command.
    """
    source = task.source
    encoder, index, cache = _opened(source)
    order = _order(source.pools, source.config, task.lane)
    order.take_tokens(encoder.tokenizer_key)
    num_captions = task.stop - task.start
    cursor = PoolCursor(*divmod(task.start, order.length))
    batches = list(order.batches(cursor, num_captions, num_captions))
    lookup = cache.lookup(scanned_texts(source.config, task.lane, batches))
    scores = Scores(*cache.store(lookup, *best_entries(encoder, index, lookup.new)))
    _write_kept(source.tower)  # the process may be killed before the next range
    return scores


def pool_paths(pools: PoolMixture) -> tuple[PoolPath, ...]:
    """The pools of a mixture, for another process to open."""
    return tuple(PoolPath(p.name, p.pool.named, p.share, p.pool.fingerprint) for p in pools)


def open_pools(paths: Sequence[PoolPath]) -> PoolMixture:
    """Open the pools of another process's mixture.

    Raises:
        ConfigError: A path holds another pool.
    """
    opened = []
    for name, path, share, fingerprint in paths:
        pool = Pool.open(path)
        if pool.fingerprint != fingerprint:
            raise ConfigError(f"{path} is another pool for this worker than for the command")
        opened.append((name, pool, share))
    return PoolMixture(opened)


@lru_cache(maxsize=2)  # with --ahead: this outer step's, for replacements, and the next one's
def _opened(source: ScoreSource) -> tuple[TextEncoder, MetadataIndex, ScoreCache]:
    encoder = _encoder(source.tower)
    if source.encoder and encoder.fingerprint != source.encoder:
        raise ConfigError(
            f"--text-encoder {source.tower.text.text_encoder} is not the same for all workers: "
            "give them the same files, packages and kind of device"
        )
    index = build_index(_vectors(source), source.index_kind, device=encoder.device)
    return encoder, index, ScoreCache()


def _vectors(source: ScoreSource) -> Float32:
    """float32 [entries, dim]: the metadata's vectors, stored or embedded here."""
    if source.index is not None:
        return load_vectors(source.index)[1]
    entries, templates = read_metadata(source.metadata).entries, source.metadata.templates
    if metadata_fingerprint(entries, templates) != source.metadata_fingerprint:
        raise ConfigError(
            f"--metadata {source.metadata.metadata} has changed since this run was opened; put it "
            "back, and resume with --resume"
        )
    prompts = distinct_prompts(entries, templates)
    embedder = PrecomputedEmbedder(prompts, _embedded(source.tower, prompts))
    return embed_metadata(embedder.embed, entries, templates)


@lru_cache(maxsize=1)
def _embedded(tower: Tower, texts: tuple[str, ...]) -> Embedded:
    encoder = _encoder(tower)
    return Embedded(encoder.fingerprint, embed_or_nan(encoder.embed, texts))


@lru_cache(maxsize=2)
def _encoder(tower: Tower) -> TextEncoder:
    if tower.num_threads:
        torch.set_num_threads(tower.num_threads)
    return TextEncoder.load(tower.text, device=tower.device, kept=_kept(tower))


@lru_cache(maxsize=2)
def _kept(tower: Tower) -> VectorCache | None:
    if tower.kept is None:
        return None
    return VectorCache(tower.kept, max_bytes=tower.text.vector_cache_bytes)


def _write_kept(tower: Tower) -> None:
    if (kept := _kept(tower)) is not None:
        kept.flush()


@lru_cache(maxsize=1)
def _pools(paths: tuple[PoolPath, ...]) -> PoolMixture:
    return open_pools(paths)


@lru_cache(maxsize=2)  # each may hold a window of its pools in memory
def _order(paths: tuple[PoolPath, ...], config: CurateConfig, lane: int) -> MixedOrder:
    return MixedOrder(
        _pools(paths),
        seed=config.seed,
        lane=lane,
        num_lanes=config.lanes,
        order=config.order,
        texts=config.texts,
    )
