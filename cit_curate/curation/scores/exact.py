"""Scores of the captions of a window: what is compared, and how all of them are."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.captions import augment_tags
from cit_curate.config import CurateConfig
from cit_curate.curation.scores.broken_vectors import embed_captions, mark_broken
from cit_curate.curation.scores.keyed_random import keyed_generators
from cit_curate.curation.scores.score_cache import KnownScores
from cit_curate.records import TOKENS, Bool, CaptionBatch, Embedder, Float32, Int64
from cit_curate.text_encoder.texts import Texts
from indexes.proposals import as_array
from indexes.protocol import MetadataIndex

# Lanes that look for replacements at the same time share one encoder and one index.
ENCODING = threading.Lock()
# First words of random keys, so that no two uses of a seed draw the same numbers.
TAG_KEY = 11


class Scores(NamedTuple):
    """The scores of the captions of a window.

    Attributes:
        similarity: float32 [window], best cosine over the metadata; NaN: not scored.
        nearest: int64 [window], nearest entry; of no meaning where not scored.
        weight: float32 [window], one over the probability that the caption is scored; 0 where it
            was not. None: all are.
        search_seconds: Of them, the search's share of the time.
    """

    similarity: Float32
    nearest: Int64
    weight: Float32 | None = None
    search_seconds: float = 0.0

    def of(self, rows: Bool) -> "Scores":
        """The scores of some captions: bool [window]."""
        weight = None if self.weight is None else self.weight[rows]
        return Scores(self.similarity[rows], self.nearest[rows], weight)


WindowScores = Callable[[Sequence[CaptionBatch]], Scores]
"""What scores the captions of the scan's next window."""


def scanned_texts(config: CurateConfig, lane: int, window: Sequence[CaptionBatch]) -> Texts:
    """The texts that are scored: captions, tags augmented anew at each visit."""
    rows = pa.concat_tables([batch.rows for batch in window])
    captions = rows["caption"].combine_chunks()
    tokens = rows[TOKENS].combine_chunks() if TOKENS in rows.column_names else None
    if not config.augments_tags:
        return Texts(captions, tokens)
    tags = np.flatnonzero(pc.equal(rows["text_key"], "tag").to_numpy())
    texts = captions.take(pa.array(tags)).to_pylist()
    several = [place for place, text in enumerate(texts) if "," in text]
    chosen = tags[several]
    pass_index = np.concatenate([batch.pass_index for batch in window])[chosen]
    position = np.concatenate([batch.position for batch in window])[chosen]
    generators = keyed_generators(
        (config.seed, TAG_KEY), pass_index, [lane] * len(chosen), position
    )
    # One tag has neither order nor delimiter, so nothing need be drawn for it.
    augmented = [text.strip() for text in texts]
    for place, rng in zip(several, generators, strict=True):
        augmented[place] = augment_tags(texts[place], rng)
    is_tag = np.zeros(len(captions), dtype=np.bool_)
    is_tag[tags] = True
    array = pc.replace_with_mask(captions, pa.array(is_tag), pa.array(augmented, pa.string()))
    if tokens is not None:
        changed = pc.not_equal(captions, array).to_numpy(zero_copy_only=False)
        tokens = tokens.take(pa.array(np.arange(len(captions)), mask=changed))
    return Texts(array, tokens)


class ExactScores:
    """Every caption is embedded and compared with all metadata; a `WindowScores`."""

    def __init__(
        self,
        config: CurateConfig,
        lane: int,
        encoder: Embedder,
        index: MetadataIndex,
        known: KnownScores,
    ) -> None:
        self._config, self._lane = config, lane
        self._encoder, self._index, self._known = encoder, index, known

    def __call__(self, window: Sequence[CaptionBatch]) -> Scores:
        """The scores of a window."""
        return self.of(scanned_texts(self._config, self._lane, window))

    def of(self, texts: Texts) -> Scores:
        """The scores of texts."""
        with ENCODING:
            asked = self._known.ask(texts)
            vectors, broken = embed_captions(self._encoder, asked.new)
            embedded = time.perf_counter()
            found = self._index.search(vectors)
            similarity = mark_broken(found.similarity[:, 0], broken)
            scored = self._known.answer(asked, similarity, found.ids[:, 0])
            return Scores(*scored, search_seconds=time.perf_counter() - embedded)

    def vectors(self, texts: Texts) -> tuple[Float32, Float32]:
        """Vectors and similarity of distinct texts, whose scores are known from then on.

        Returns:
            float32 [texts, dim] and float32 [texts], NaN where there is no usable vector.
        """
        with ENCODING:
            asked = self._known.ask(texts)
            vectors, broken = embed_captions(self._encoder, texts)
            found = self._index.search(vectors)
            similarity = mark_broken(found.similarity[:, 0], broken)
            is_new = asked.known < 0
            self._known.answer(asked, similarity[is_new], found.ids[is_new, 0])
        return as_array(vectors), similarity
