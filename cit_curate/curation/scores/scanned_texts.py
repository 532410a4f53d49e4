"""The texts that a scan scores: captions as they are, and tags augmented at each visit."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.captions import augment_tags
from cit_curate.config import CurateConfig
from cit_curate.curation.scores.keyed_random import keyed_generators
from cit_curate.records import TOKENS, CaptionBatch
from cit_curate.text_encoder.texts import Texts

# First word of the random keys, so that no two uses of a seed draw the same numbers.
TAG_KEY = 11


def scanned_texts(config: CurateConfig, lane: int, window: Sequence[CaptionBatch]) -> Texts:
    """The texts of a window.

    An augmented tag caption is a function of (seed, pass, lane, position) alone, so that the scored
    text can be made again.
    """
    rows = pa.concat_tables([batch.rows for batch in window])
    captions = rows["caption"].combine_chunks()
    tokens = rows[TOKENS].combine_chunks() if TOKENS in rows.column_names else None
    if not config.augments_tags:
        return Texts(captions, tokens)
    tags = np.flatnonzero(pc.equal(rows["text_key"], "tag").to_numpy())
    texts = captions.take(pa.array(tags)).to_pylist()
    several = [row for row, text in enumerate(texts) if "," in text]
    chosen = tags[several]
    pass_index = np.concatenate([batch.pass_index for batch in window])[chosen]
    position = np.concatenate([batch.position for batch in window])[chosen]
    generators = keyed_generators(
        (config.seed, TAG_KEY), pass_index, [lane] * len(chosen), position
    )
    # A single tag has neither order nor delimiter, so nothing is drawn for it.
    augmented = [text.strip() for text in texts]
    for row, rng in zip(several, generators, strict=True):
        augmented[row] = augment_tags(texts[row], rng)
    is_tag = np.zeros(len(captions), dtype=np.bool_)
    is_tag[tags] = True
    array = pc.replace_with_mask(captions, pa.array(is_tag), pa.array(augmented, pa.string()))
    if tokens is not None:
        changed = pc.not_equal(captions, array).to_numpy(zero_copy_only=False)
        tokens = tokens.take(pa.array(np.arange(len(captions)), mask=changed))
    return Texts(array, tokens)
