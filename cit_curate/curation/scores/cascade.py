"""A cascade: scores by embedding only the captions that may pass.

Cheap proxies guess each caption's similarity (`proxies.py`). A caption far below the threshold is
skipped; a random part of these is scored anyway, to estimate what was missed (`audit.py`).

The first `calibration_captions` captions of an outer step are all scored. On them the guesses from
token vectors are fitted to the current encoder, and the errors of all guesses are measured. Whether
a caption is scored depends on them, on its position in the scan, and on the audit's last review.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from cit_curate.config import CurateConfig
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import ENCODING, ExactScores, Scores
from cit_curate.curation.scores.keyed_random import keyed_uniform
from cit_curate.curation.scores.proxies import (
    TREND_CAPTIONS,
    Cut,
    Int8Tower,
    Proxy,
    fit_token_map,
    guess_apart,
)
from cit_curate.curation.scores.scanned_texts import scanned_texts
from cit_curate.curation.scores.token_match import fit_token_match
from cit_curate.records import CaptionBatch, CaptionOrder, Float32, PoolCursor
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.texts import Texts
from cit_curate.text_encoder.tokens import Tokens
from indexes.protocol import MetadataIndex

# Factors of the margins, by the caution of the audit's last review.
CAUTION = (1.0, 1.25, 1.5)
# Factor of the audit ratio for skipped captions less than half a margin below the cut.
NEAR_AUDIT = 10
AUDIT_KEY = 12
# Factor of the map's margin where a closer guess follows. Both err on the same captions, so what
# may be lost is not divided between them: the map then loses at most 2 in 1,000 of what passes.
SCREEN = 1.25


class Stage(NamedTuple):
    """A guess that rules captions out.

    Attributes:
        proxy: The guess.
        cut: What it expects of a caption that just passes.
        margin: How far below that a caption is ruled out, without caution.
    """

    proxy: Proxy
    cut: Cut
    margin: float


class CascadeScores:
    """The scores of the captions that may pass; a `WindowScores`."""

    def __init__(
        self,
        config: CurateConfig,
        *,
        lane: int,
        order: CaptionOrder,
        first: PoolCursor,
        encoder: TextEncoder,
        index: MetadataIndex,
        exact: ExactScores,
    ) -> None:
        """Set up a cascade; nothing is embedded yet.

        Args:
            config: The rules.
            lane: The number of the lane.
            order: The lane's captions, in scan order.
            first: The cursor at which the lane's scan began in this outer step.
            encoder: The text encoder.
            index: The metadata under that encoder.
            exact: The scores of the captions that may pass.
        """
        self._config, self._lane, self._order, self._first = config, lane, order, first
        self._encoder, self._index, self._exact = encoder, index, exact
        self._stages: list[Stage] | None = None

    def __call__(self, window: Sequence[CaptionBatch], totals: ScanTotals) -> Scores:
        """The scores of the captions of a window that may pass, and of the audited ones."""
        self.calibrate()
        caution = CAUTION[totals.audit.caution if totals.audit is not None else 0]
        texts = scanned_texts(self._config, self._lane, window)
        position = np.concatenate([batch.scan_position for batch in window])
        probability = self._probability(texts, [len(batch) for batch in window], caution)
        first = self._first.pass_index * self._order.length + self._first.position
        probability[position < first + self._config.calibration_captions] = 1
        drawn = keyed_uniform((self._config.seed, AUDIT_KEY, self._lane), position)
        chosen = np.flatnonzero(drawn < probability)
        scores = self._exact.of(texts.take(chosen))
        similarity = np.full(len(texts), np.nan, dtype=np.float32)
        nearest = np.zeros(len(texts), dtype=np.int64)
        weight = np.zeros(len(texts), dtype=np.float32)
        similarity[chosen], nearest[chosen] = scores.similarity, scores.nearest
        weight[chosen] = 1 / probability[chosen]
        return Scores(similarity, nearest, weight, scores.search_seconds)

    def calibrate(self) -> None:
        """Fit the proxies and measure the errors of their guesses, once."""
        if self._stages is not None:
            return
        config, count = self._config, self._config.calibration_captions
        batches = list(self._order.batches(self._first, 2 * config.batch_size, count))
        distinct, _ = scanned_texts(config, self._lane, batches).distinct()
        if len(distinct) < TREND_CAPTIONS:  # too few to calibrate on: everything is scored
            self._stages = []
            return
        vectors, similarity = self._exact.vectors(distinct)
        sound = np.flatnonzero(np.isfinite(similarity))
        tokens = self._encoder.tokenize(distinct).take(sound)
        with ENCODING:
            self._stages = self._fit(tokens, vectors[sound], similarity[sound])

    def _fit(self, tokens: Tokens, vectors: Float32, similarity: Float32) -> list[Stage]:
        """The stages, fitted to captions whose vectors and similarities are known."""
        config = self._config
        int8 = self._encoder.int8 if config.proxy != "tokens" else None
        num_guesses = (config.proxy != "int8") + (int8 is not None)
        lost = (1 - config.target_recall) / (2 * max(num_guesses, 1))
        stages = []
        if config.proxy != "int8":
            stages += self._token_stages(tokens, vectors, similarity, lost)
        if int8 is not None:
            proxy = Int8Tower(int8, self._index)
            cut = Cut.fit(proxy.similarity(tokens), similarity, config.threshold)
            stages.append(Stage(proxy, cut, proxy.widening * cut.margin(lost)))
        return stages

    def _token_stages(
        self, tokens: Tokens, vectors: Float32, similarity: Float32, lost: float
    ) -> list[Stage]:
        """The map of tokens, and then the closer guess if it lets through fewer captions."""
        token_map, folds = fit_token_map(self._encoder, self._index, tokens, vectors)
        guesses = guess_apart(folds, tokens)
        cut = Cut.fit(guesses, similarity, self._config.threshold)
        match, closer = fit_token_match(token_map, folds, tokens, vectors)
        closer_cut = Cut.fit(closer, similarity, self._config.threshold)
        margin = cut.margin(lost)
        closer_margin = match.widening * closer_cut.margin(lost)
        if closer_cut.let_through(closer, closer_margin) >= cut.let_through(guesses, margin):
            return [Stage(token_map, cut, margin)]
        screen = Stage(token_map, cut, SCREEN * margin)
        return [screen, Stage(match, closer_cut, closer_margin)]

    def _probability(self, texts: Texts, lengths: Sequence[int], caution: float) -> Float32:
        """The probability that each caption is scored: float32 [window]; 1 = it may pass."""
        assert self._stages is not None
        config = self._config
        distinct, index_of = texts.distinct()
        tokens = self._encoder.tokenize(distinct)
        probability = np.ones(len(texts), dtype=np.float32)
        may_pass = np.ones(len(texts), dtype=np.bool_)
        for proxy, cut, margin in self._stages:
            margin *= caution
            needed = np.unique(index_of[may_pass])
            with ENCODING:
                guesses = np.full(len(tokens), -np.inf, dtype=np.float32)
                guesses[needed] = proxy.similarity(tokens.take(needed))
            guess = np.where(may_pass, guesses[index_of], -np.inf)
            expected = self._expected(guess, cut.expected, lengths)
            is_low = may_pass & (guess < expected - margin)
            is_near = guess >= expected - 1.5 * margin
            audited = np.where(is_near, NEAR_AUDIT * config.audit_ratio, config.audit_ratio)
            probability[is_low] = np.minimum(audited, 1)[is_low]
            may_pass &= ~is_low
        return probability

    def _expected(self, guess: Float32, expected: float, lengths: Sequence[int]) -> Float32:
        """The guess expected of a caption that just passes its batch: float32 [window].

        Where fewer than `min_ratio` of a batch seem to pass, its best few are kept, and the last of
        them sets the expected guess.
        """
        stops = list(accumulate(lengths))
        lowest = np.full(len(guess), expected, dtype=np.float32)
        for stop, length in zip(stops, lengths, strict=True):
            count = int(self._config.min_ratio * length)
            if count:
                batch = slice(stop - length, stop)
                best = np.partition(guess[batch], -count)[-count]
                lowest[batch] = min(expected, best)
        return lowest
