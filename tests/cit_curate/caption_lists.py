"""Captions in memory as a pool, and an encoder of angles, for tests of a scan."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cit_curate.config import CurateConfig
from cit_curate.curation.lane_scan import LaneScan, OuterStep
from cit_curate.curation.rule import make_rule
from cit_curate.curation.scores.cascade import CascadeScores
from cit_curate.curation.scores.exact import ExactScores, WindowScores
from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.curation.scores.two_pass import two_pass_scores
from cit_curate.metadata.entries import MetadataEntry
from cit_curate.records import PAIR_COLUMNS, CaptionBatch, CaptionOrder, PoolCursor
from cit_curate.text_encoder.embedder import Embedder
from cit_curate.text_encoder.texts import Texts
from indexes.protocol import MetadataIndex

START = PoolCursor()


@dataclass(frozen=True)
class ListOrder:
    """A pool of captions that is scanned as it stands, pass after pass."""

    rows: pa.Table

    @property
    def length(self) -> int:
        return len(self.rows)

    names = ()

    def repeats(self, num_captions: int) -> int:
        return -(-num_captions // self.length)

    def batches(
        self, cursor: PoolCursor, batch_size: int, limit: int | None
    ) -> Iterator[CaptionBatch]:
        start = cursor.pass_index * self.length + cursor.position
        stop = start + (limit if limit is not None else 10**9)
        while start < stop:
            scan_position = np.arange(start, min(start + batch_size, stop))
            pass_index, position = np.divmod(scan_position, self.length)
            start = int(scan_position[-1]) + 1
            after = PoolCursor(*(int(value) for value in divmod(start, self.length)))
            rows = self.rows.take(position)
            yield CaptionBatch(rows, pass_index, position, scan_position, after)


class WordEncoder:
    """Captions are angles in degrees; their vector is the point on the unit circle."""

    fingerprint = "words"
    device = "cpu"
    tokenizer_key = ""

    def embed_on_device(self, texts: Texts) -> np.ndarray:
        return self.embed(texts.array.to_pylist())

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        angles = np.radians(np.array([float(text) for text in texts], dtype=np.float64))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def caption_table(captions: Sequence[str], text_key: str = "title") -> pa.Table:
    rows = [(f"{row:08d}", text_key, caption, "", "s") for row, caption in enumerate(captions)]
    columns = list(zip(*rows, strict=True))
    return pa.table([pa.array(column, pa.string()) for column in columns], names=PAIR_COLUMNS)


def open_scan(
    config: CurateConfig,
    order: CaptionOrder,
    entries: Sequence[MetadataEntry],
    encoder: Embedder,
    index: MetadataIndex,
    *,
    cursor: PoolCursor = START,
    outer_step: int = 0,
    lane: int = 0,
    update: int = 0,
) -> LaneScan:
    """The scan of a lane as a curator opens it, which needs a pool."""
    scores: WindowScores | None = ExactScores(config, lane, encoder, index, ScoreCache())
    if config.curation == "none" or update < config.skip_until:
        scores = None
    elif config.curation == "two-pass":
        scores = two_pass_scores(config, lane, encoder=encoder, index=index, exact=scores)
    elif config.curation == "cascade":
        scores = CascadeScores(
            config,
            lane=lane,
            order=order,
            first=cursor,
            encoder=encoder,
            index=index,
            exact=ExactScores(config, lane, encoder, index, ScoreCache()),
        )
    return LaneScan(
        config,
        order,
        pa.array([entry.name for entry in entries], pa.string()),
        step=OuterStep(outer_step, update, encoder.fingerprint),
        lane=lane,
        cursor=cursor,
        scores=scores,
        rule=make_rule(
            config,
            lane=lane,
            num_entries=len(entries),
            num_pairs=config.budget,
            scored=scores is not None,
        ),
    )
