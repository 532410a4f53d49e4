"""Similarities ahead of the scan: stretches of a lane's captions, scored by any process, as files.

The rules of a selection go batch by batch in the order of the scan; what costs, embedding and
searching, depends on each caption alone. So a stretch of captions is the unit of work: `score`
writes a small file of two columns, and the scan reads the files in order. Neither the number of
workers nor a kill shows in the selection.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cit_curate.config import CurateConfig, TextTowerConfig
from cit_curate.curation.scores.broken_vectors import best_entries
from cit_curate.curation.scores.exact import Scores, scanned_texts
from cit_curate.curation.scores.score_cache import KnownScores
from cit_curate.engines.workers import Mapper
from cit_curate.errors import ConfigError, DamagedError
from cit_curate.metadata.stored_index import load_vectors, save_index
from cit_curate.metadata.vectors import embed_or_nan
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import CaptionBatch, Float32, Int64, PoolCursor
from cit_curate.storage.durable import append_sha256, atomic_file, read_with_sha256, sweep_temporary
from cit_curate.text_encoder.encoder import TextEncoder
from indexes.build import build_index
from indexes.protocol import MetadataIndex

_log = logging.getLogger(__name__)

# Captions of a unit. Fewer fill the last forward pass of each length badly; more keep a worker
# busy in vain when the budget is full, and the others waiting at the end.
UNIT_CAPTIONS = 4_096
# A worker is worth its start (seconds, for torch and the text tower) from so many captions on.
# Measured on 2 busy cores with MiniLM, 17,964 captions: 2 processes of one thread 40 s, one process
# of two threads 97 s; forward passes of 64 short rows are too small to share.
CAPTIONS_PER_WORKER = 8_192
STAGING_VERSION = 2

_SCHEMA = pa.schema([("similarity", pa.float32()), ("metadata_id", pa.int64())])


@dataclass(frozen=True)
class Tower:
    """The text tower that all workers load.

    Attributes:
        num_threads: Threads of torch in each worker; 0 leaves torch's own choice.
    """

    text: TextTowerConfig
    device: str
    num_threads: int = 0


@dataclass(frozen=True)
class EmbedTask:
    """Texts to embed."""

    tower: Tower
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Embedded:
    """An encoder's version, and float32 [texts, dim]."""

    fingerprint: str
    vectors: Float32


PoolPlaces = tuple[tuple[str, str, Fraction, str], ...]


@dataclass(frozen=True)
class Scan:
    """All that a score depends on, and where the scores are kept.

    Attributes:
        folder: The scores of this scan; `index/` in it holds the metadata.
        encoder: Fingerprint that a worker's encoder must have.
        pools: Name, place, weight and fingerprint of each pool.
        index_kind: Backend that a worker searches with.
    """

    folder: Path
    pools: PoolPlaces
    config: CurateConfig
    tower: Tower
    encoder: str
    index_kind: str


@dataclass(frozen=True)
class ScoreTask:
    """Scan positions `start` to `stop` - 1 of a lane."""

    scan: Scan
    lane: int
    start: int
    stop: int

    @property
    def path(self) -> Path:
        """Where the scores lie, whole or not at all."""
        return self.scan.folder / f"lane={self.lane:05d}" / f"{self.start:012d}-{self.stop}.arrow"


class KnownTexts:
    """An embedder of texts that a worker has embedded: the metadata, for the index."""

    def __init__(self, texts: Sequence[str], embedded: Embedded) -> None:
        self.fingerprint = embedded.fingerprint
        self._vectors = embedded.vectors
        self._row = {text: row for row, text in enumerate(texts)}

    def embed(self, texts: Sequence[str]) -> Float32:
        """float32 [texts, dim], unit norm; KeyError for any other text."""
        return self._vectors[[self._row[text] for text in texts]]


def embed(task: EmbedTask) -> Embedded:
    """Embed texts with the encoder of this process."""
    encoder = _encoder(task.tower)
    return Embedded(encoder.fingerprint, embed_or_nan(encoder.embed, task.texts))


def embedder(mapped: Mapper, tower: Tower, texts: Sequence[str]) -> KnownTexts:
    """The encoder as the workers have it: its version, and the vectors of these texts."""
    distinct = tuple(dict.fromkeys(texts))
    (embedded,) = mapped(embed, [EmbedTask(tower, distinct)])
    return KnownTexts(distinct, embedded)


def score(task: ScoreTask) -> None:
    """Write the scores of a stretch of captions, unless they are there already.

    Raises:
        ConfigError: The pool or the text tower is another one here than where the scan began.
    """
    if task.path.is_file():
        return
    order = _order(task.scan, task.lane)
    encoder, index = _encoder(task.scan.tower), _index(task.scan)
    if encoder.fingerprint != task.scan.encoder:
        raise ConfigError(
            f"--text-encoder {task.scan.tower.text.text_encoder} is not the same for all workers: "
            "give them the same files, packages and kind of device"
        )
    cursor = PoolCursor(*divmod(task.start, order.length))
    order.take_tokens(encoder.tokenizer_key)
    batches = list(order.batches(cursor, UNIT_CAPTIONS, task.stop - task.start))
    known = _known(task.scan)
    asked = known.ask(scanned_texts(task.scan.config, task.lane, batches))
    scored = known.answer(asked, *best_entries(encoder, index, asked.new))
    task.path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(task.path) as temporary:
        with (
            pa.OSFile(str(temporary), "wb") as stream,
            pa.ipc.new_file(stream, _SCHEMA) as writer,
        ):
            writer.write_table(pa.table([pa.array(each) for each in scored], schema=_SCHEMA))
        append_sha256(temporary)


def read_scores(task: ScoreTask) -> tuple[Float32, Int64]:
    """Best similarity and nearest entry of each caption: float32 and int64 [captions].

    Raises:
        DamagedError: The file is cut or changed.
    """
    try:
        with pa.ipc.open_file(read_with_sha256(task.path)) as file:
            table = file.read_all()
    except (DamagedError, pa.ArrowInvalid) as error:
        raise DamagedError(f"{error}; remove it and run the same command again") from error
    return table["similarity"].to_numpy(), table["metadata_id"].to_numpy()


class ScoredLane:
    """The scores of one lane, in the order of its scan; the engine works ahead of whoever asks."""

    def __init__(self, mapped: Mapper, scan: Scan, lane: int, num_captions: int) -> None:
        self._tasks = [
            ScoreTask(scan, lane, start, min(start + UNIT_CAPTIONS, num_captions))
            for start in range(0, num_captions, UNIT_CAPTIONS)
        ]
        self._units = self._scored(mapped)
        self._similarity = np.zeros(0, np.float32)
        self._nearest = np.zeros(0, np.int64)

    def __call__(self, window: Sequence[CaptionBatch]) -> Scores:
        """The scores of the next captions of the scan."""
        count = sum(map(len, window))
        while len(self._similarity) < count:
            similarity, nearest = next(self._units)
            self._similarity = np.concatenate([self._similarity, similarity])
            self._nearest = np.concatenate([self._nearest, nearest])
        taken = Scores(self._similarity[:count], self._nearest[:count])
        self._similarity, self._nearest = self._similarity[count:], self._nearest[count:]
        return taken

    def _scored(self, mapped: Mapper) -> Iterator[tuple[Float32, Int64]]:
        # Asked for only now: without curation nobody needs a score. What an earlier try has
        # scored comes first, and costs no worker its start.
        done = 0
        while done < len(self._tasks) and self._tasks[done].path.is_file():
            yield read_scores(self._tasks[done])
            done += 1
        rest = self._tasks[done:]
        for task, _ in zip(rest, mapped(score, rest) if rest else (), strict=True):
            yield read_scores(task)


def open_scan(
    staging: Path,
    pools: PoolMixture,
    config: CurateConfig,
    tower: Tower,
    *,
    encoder: str,
    metadata: str,
    index: MetadataIndex,
) -> Scan:
    """The scan whose scores are in `staging`; those of another scan are removed, and it is said.

    Args:
        staging: A folder beside the run.
        pools: The pools.
        config: The rules; a score depends on the order of the scan, and on no threshold.
        tower: The text tower.
        encoder: Its fingerprint.
        metadata: Fingerprint of the metadata.
        index: The metadata under that encoder.
    """
    key = {
        "staging version": STAGING_VERSION,
        "pools": [(each.name, str(each.share), each.pool.fingerprint) for each in pools],
        "encoder": encoder,
        "metadata": metadata,
        "index": index.kind,
        **{name: getattr(config, name) for name in ("seed", "lanes", "order", "texts")},
        "aug_tag": config.augments_tags,
    }
    folder = staging / _digest(key)
    if staging.is_dir() and not folder.is_dir():
        _log.warning("%s: scoring starts over, since it holds scores of another scan", staging)
        shutil.rmtree(staging)
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporary(folder)
    save_index(index, folder / "index", version=_digest(key))
    return Scan(folder, pool_places(pools), config, tower, encoder, index.kind)


def pool_places(pools: PoolMixture) -> PoolPlaces:
    """Name, place, weight and fingerprint of each pool: what another process opens them from."""
    return tuple((p.name, p.pool.named, p.share, p.pool.fingerprint) for p in pools)


def open_places(places: PoolPlaces) -> PoolMixture:
    """The pools, in another process.

    Raises:
        ConfigError: What lies there is another pool.
    """
    opened = []
    for name, place, share, fingerprint in places:
        pool = Pool.open(place)
        if pool.fingerprint != fingerprint:
            raise ConfigError(f"{place} is another pool for this worker than for the command")
        opened.append((name, pool, share))
    return PoolMixture(opened)


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _encoder(tower: Tower) -> TextEncoder:
    if tower.num_threads:
        import torch

        torch.set_num_threads(tower.num_threads)
    return TextEncoder.load(tower.text, device=tower.device)


@lru_cache(maxsize=1)
def _index(scan: Scan) -> MetadataIndex:
    _, vectors = load_vectors(scan.folder / "index")
    return build_index(vectors, scan.index_kind, device=_encoder(scan.tower).device)


@lru_cache(maxsize=1)
def _known(scan: Scan) -> KnownScores:
    """What this process has scored; units are scored in no certain order, which shows nowhere."""
    return KnownScores()


@lru_cache(maxsize=1)
def _order(scan: Scan, lane: int) -> MixedOrder:
    config = scan.config
    return MixedOrder(
        open_places(scan.pools),
        seed=config.seed,
        lane=lane,
        num_lanes=config.lanes,
        order=config.order,
        texts=config.texts,
    )
