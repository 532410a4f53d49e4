"""Scores in files, for a scan that must survive a kill or that several workers share.

```
.staging-RUN/<digest of all that a score depends on>/
  index/                                    the metadata's vectors
  lane=00000/000000000000-4096.arrow        float32 similarity, int64 metadata_id; SHA-256
```
Workers write the files in any order, and the scan reads them in its own. Neither the number of
workers nor a kill changes the selection.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import LaneScores, Scores
from cit_curate.curation.scores.score_range import ScoreRange, ScoreSource, score_range
from cit_curate.engines.workers import Mapper
from cit_curate.errors import DamagedError
from cit_curate.metadata.stored_index import save_index
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.records import CaptionBatch
from cit_curate.storage.durable import (
    append_sha256,
    atomic_file,
    read_with_sha256,
    sweep_temporary,
)
from indexes.protocol import MetadataIndex

logger = logging.getLogger(__name__)

# Captions of a file. With fewer, the last forward pass of each length is badly filled; with more, a
# worker works in vain once the budget is full, and the others wait at the end.
RANGE_CAPTIONS = 4_096
STAGING_VERSION = 2

_SCHEMA = pa.schema([("similarity", pa.float32()), ("metadata_id", pa.int64())])


@dataclass(frozen=True)
class ScoreFile:
    """The file of a range's scores.

    Attributes:
        folder: The folder of all scores of the scan.
        range: The range of captions.
    """

    folder: Path
    range: ScoreRange

    @property
    def path(self) -> Path:
        """The path of the file, which is whole or absent."""
        name = f"{self.range.start:012d}-{self.range.stop}.arrow"
        return self.folder / f"lane={self.range.lane:05d}" / name


def write_scores(file: ScoreFile) -> None:
    """Write the scores of a range, unless the file is there.

    Raises:
        ConfigError: See `score_range`.
    """
    if file.path.is_file():
        return
    scores = score_range(file.range)
    file.path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file.path) as temporary:
        with (
            pa.OSFile(str(temporary), "wb") as stream,
            pa.ipc.new_file(stream, _SCHEMA) as writer,
        ):
            columns = [pa.array(scores.similarity), pa.array(scores.nearest)]
            writer.write_table(pa.table(columns, schema=_SCHEMA))
        append_sha256(temporary)


def read_scores(file: ScoreFile) -> Scores:
    """The scores in a file.

    Raises:
        DamagedError: The file is cut or changed.
    """
    try:
        with pa.ipc.open_file(read_with_sha256(file.path)) as opened:
            table = opened.read_all()
    except (DamagedError, pa.ArrowInvalid) as error:
        raise DamagedError(f"{error}; remove it and run the same command again") from error
    return Scores(table["similarity"].to_numpy(), table["metadata_id"].to_numpy())


class StagedScores:
    """The scores of one lane from its first caption; a `WindowScores`."""

    def __init__(self, mapped: Mapper, files: Sequence[ScoreFile]) -> None:
        self._ranges = self._read_in_order(mapped, files)
        self._similarity = np.zeros(0, np.float32)
        self._nearest = np.zeros(0, np.int64)

    def __call__(self, window: Sequence[CaptionBatch], totals: ScanTotals) -> Scores:
        """The scores of the next captions of the scan."""
        count = sum(map(len, window))
        while len(self._similarity) < count:
            scores = next(self._ranges)
            self._similarity = np.concatenate([self._similarity, scores.similarity])
            self._nearest = np.concatenate([self._nearest, scores.nearest])
        taken = Scores(self._similarity[:count], self._nearest[:count])
        self._similarity, self._nearest = self._similarity[count:], self._nearest[count:]
        return taken

    def _read_in_order(self, mapped: Mapper, files: Sequence[ScoreFile]) -> Iterator[Scores]:
        # The files of an earlier attempt are read before any worker is started.
        done = 0
        while done < len(files) and files[done].path.is_file():
            yield read_scores(files[done])
            done += 1
        rest = files[done:]
        for file, _ in zip(rest, mapped(write_scores, rest) if rest else (), strict=True):
            yield read_scores(file)


def staged_scores(
    mapped: Mapper,
    staging: Path,
    source: ScoreSource,
    index: MetadataIndex,
    orders: Sequence[MixedOrder],
) -> LaneScores:
    """The scores of every lane, written by an engine ahead of the scan.

    Args:
        mapped: The engine's map.
        staging: The folder of the files, beside the run; scores of another scan are removed, with a
            warning.
        source: All that the scores depend on.
        index: The metadata under the encoder of `source`.
        orders: The captions of every lane, in scan order.
    """
    folder = _open_folder(staging, source, index)
    source = replace(source, index=folder / "index")

    def files(lane: int) -> list[ScoreFile]:
        stop = source.config.max_passes * orders[lane].length
        starts = range(0, stop, RANGE_CAPTIONS)
        return [
            ScoreFile(folder, ScoreRange(source, lane, start, min(start + RANGE_CAPTIONS, stop)))
            for start in starts
        ]

    return lambda lane, _: StagedScores(mapped, files(lane))


def _open_folder(staging: Path, source: ScoreSource, index: MetadataIndex) -> Path:
    config = source.config
    key = {
        "staging version": STAGING_VERSION,
        "pools": [(pool.name, str(pool.share), pool.fingerprint) for pool in source.pools],
        "encoder": source.encoder,
        "metadata": source.metadata_fingerprint,
        "index": source.index_kind,
        **{name: getattr(config, name) for name in ("seed", "lanes", "order", "texts")},
        "aug_tag": config.augments_tags,
    }
    folder = open_staging(staging, key)
    save_index(index, folder / "index", version=folder.name)
    return folder


def open_staging(staging: Path, key: Mapping[str, object]) -> Path:
    """The folder for what a scan keeps until its run is complete; that of another one is removed.

    Args:
        staging: The folder beside the run.
        key: All that the scan depends on: JSON values.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = staging / digest
    if staging.is_dir() and not folder.is_dir():
        logger.warning("%s: scoring starts over, since it holds scores of another scan", staging)
        shutil.rmtree(staging)
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporary(folder)
    return folder
