"""One outer step of one lane: read captions until the budget is full.

`LaneScan` walks the lane's captions from where the last outer step ended: read a window, embed,
search, apply the rules batch by batch. It gives kept pairs in arrival order, as many as are asked
for; asking again continues the scan, which is how a pair whose image cannot be opened is replaced.
"""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.config import CurateConfig
from cit_curate.curation.near_misses import NearMisses
from cit_curate.curation.rule import Rule
from cit_curate.curation.scan_rows import (
    SCORED_SCHEMA,
    ScanTotals,
    ScoredBatch,
    count_pools,
    pool_names,
    scored_rows,
)
from cit_curate.curation.scores.audit import new_audit
from cit_curate.curation.scores.broken_vectors import Rejects, check_limit, leave_out_broken
from cit_curate.curation.scores.exact import Scores, WindowScores
from cit_curate.curation.selection import (
    EVERYTHING,
    first_of_each,
    suggest_threshold,
)
from cit_curate.errors import ShortfallError
from cit_curate.records import CaptionBatch, CaptionOrder, PoolCursor

NEAR_MISSES_PER_ENTRY = 5
# Captions that are read and embedded at once: at least this many, so that length buckets fill;
# at most the second, which bounds memory and what is embedded in vain beyond the last batch.
SMALLEST_WINDOW = 1_024
LARGEST_WINDOW = 16_384

ScanProgress = Callable[[ScanTotals], None]


@dataclass(frozen=True)
class OuterStep:
    """An outer step.

    Attributes:
        number: Its number, from 0.
        update: Updates made when it begins.
        encoder: The fingerprint of the text encoder that it selects with.
    """

    number: int
    update: int
    encoder: str


@dataclass(frozen=True)
class ScanState:
    """What a scan needs to go on as if never stopped.

    Attributes:
        cursor: Where it stands.
        totals: What it has seen.
        num_asked: Pairs it was asked for.
        near_misses: The best pairs that were not kept.
        surplus: Kept pairs that nobody has taken yet.
        taken: Keys of the pairs that were taken, which in `unique` collection count once.
        set_aside: See `LaneScan.reject_rows`.
    """

    cursor: PoolCursor
    totals: ScanTotals
    num_asked: int
    near_misses: pa.Table
    surplus: pa.Table
    taken: Sequence[str]
    set_aside: Sequence[Mapping[str, Any]] = ()


class LaneScan:
    """The scan of one lane in one outer step."""

    def __init__(
        self,
        config: CurateConfig,
        order: CaptionOrder,
        entry_names: pa.Array,
        *,
        step: OuterStep,
        lane: int,
        cursor: PoolCursor,
        scores: WindowScores | None,
        rule: Rule,
    ) -> None:
        """Read nothing yet.

        Args:
            config: The budget, the collection and the passes that the scan may make.
            order: The lane's captions.
            entry_names: string [entries], the metadata.
            step: The outer step.
            lane: The lane.
            cursor: Where the last outer step's scan ended.
            scores: What scores a window of captions; None: every caption is kept, unscored.
            rule: What decides which captions of a scored batch are kept.
        """
        self.config = config
        self.order = order
        self.step = step
        self.lane = lane
        self.cursor = cursor
        self._entry_names = entry_names
        self._scores = scores
        self._rule = rule
        self.totals = ScanTotals(audit=None if scores is None else new_audit(config))
        self._near_misses = NearMisses(SCORED_SCHEMA.empty_table(), best=NEAR_MISSES_PER_ENTRY)
        self._limit = config.max_passes * order.length
        self._batches = self._read_from(cursor)
        self._scored: Iterator[ScoredBatch] = iter(())
        self._surplus = self.near_misses
        self._seen: set[str] = set()
        self._num_asked = 0
        self.set_aside: list[Mapping[str, Any]] = []
        self._broken: Rejects = {}

    def state(self, rows: pa.Table) -> ScanState:
        """The scan as it stands, having given `rows`."""
        taken = self._unique_keys(rows).to_pylist() if self._counts_once else []
        totals = copy.deepcopy(self.totals)
        return ScanState(
            self.cursor,
            totals,
            self._num_asked,
            self.near_misses,
            self._surplus,
            taken,
            tuple(self.set_aside),
        )

    def go_on_from(self, state: ScanState) -> None:
        """Put the scan where another one of the same lane and outer step stood.

        The captions from there on may be embedded in other windows, which changes no vector.
        """
        self.cursor = state.cursor
        self.totals = copy.deepcopy(state.totals)
        self._near_misses = NearMisses(state.near_misses, best=NEAR_MISSES_PER_ENTRY)
        self._surplus = state.surplus
        self._num_asked = state.num_asked
        self.set_aside, self._broken = [*state.set_aside], {}
        if self._counts_once:
            self._seen = {*state.taken, *self._unique_keys(state.surplus).to_pylist()}
        self._batches, self._scored = self._read_from(self.cursor), iter(())

    @property
    def near_misses(self) -> pa.Table:
        """The best pairs that were not kept: `NEAR_MISSES_PER_ENTRY` of an entry, best first."""
        return self._near_misses.rows

    @property
    def everything_passes(self) -> bool:
        """Whether no caption is scored: without curation, and before `skip_until`."""
        return self._scores is None

    @property
    def kept_all(self) -> bool:
        """Whether captions were compared with the threshold, and none was left out."""
        return not self.everything_passes and self.totals.kept == self.totals.scanned > 0

    def take(self, num_pairs: int | None, on_progress: ScanProgress | None = None) -> pa.Table:
        """The next kept pairs, in arrival order.

        Args:
            num_pairs: How many; None takes all that the passes have.
            on_progress: Called with the totals after each scanned batch.

        Returns:
            Table with the pair columns, scan_position, similarity, metadata and reason.

        Raises:
            ShortfallError: The passes over the pool ended before, and on_shortfall is "error";
                or they ended without one pair.
            NotFiniteError: Too many captions have a vector that is NaN, infinite or zero.
        """
        if num_pairs is None and self.config.curation == "none":
            num_pairs = self._limit
        self._num_asked += num_pairs or 0
        taken = [self._surplus]
        num_taken = len(self._surplus)
        while num_pairs is None or num_taken < num_pairs:
            batch = self._next_batch(num_pairs and num_pairs - num_taken)
            if batch is None:
                break
            taken.append(batch.kept)
            num_taken += len(batch.kept)
            if on_progress is not None:
                on_progress(self.totals)
        rows = pa.concat_tables(taken)
        is_short = num_pairs is not None and len(rows) < num_pairs
        if not self.totals.kept or (is_short and self.config.on_shortfall == "error"):
            raise self._shortfall()
        self._surplus = rows.slice(len(rows) if num_pairs is None else num_pairs)
        if self.config.curation == "none" and len(self._surplus):
            self._give_back_surplus()
        return rows.slice(0, num_pairs)

    def reject_rows(self) -> list[dict[str, Any]]:
        """The `rejects` rows of the scan: captions whose vector is NaN, infinite or zero."""
        return [
            {"outer_step": self.step.number, "lane": self.lane, **reject}
            for reject in self.set_aside
        ]

    def _read_from(self, cursor: PoolCursor) -> Iterator[CaptionBatch]:
        # Without curation the budget is always met, so the scan goes round as often as it takes.
        limit = None if self.config.curation == "none" else self._limit - self.totals.scanned
        return self.order.batches(cursor, 2 * self.config.batch_size, limit)

    def _give_back_surplus(self) -> None:
        """Read on from the last pair taken: without curation every pair comes in its turn.

        A curated step drops what is left of its last batch (docs/method.md, outer step, 1).
        """
        first = self._surplus["scan_position"][0].as_py()
        self.cursor = PoolCursor(*divmod(first, self.order.length))
        self.totals.scanned -= len(self._surplus)
        self.totals.kept -= len(self._surplus)
        given_back = count_pools(self._surplus["pool"])
        self.totals.scanned_of_pool -= given_back
        self.totals.kept_of_pool -= given_back
        self._surplus = self._surplus.slice(0, 0)
        self._batches, self._scored = self._read_from(self.cursor), iter(())

    def _next_batch(self, wanted: int | None) -> ScoredBatch | None:
        """The next scored batch; None when the passes are over."""
        batch = next(self._scored, None)
        if batch is None:
            self._scored = self._score_window(wanted)
            batch = next(self._scored, None)
        if batch is None:
            return None
        self.cursor = batch.cursor
        for reject in self._broken.get(batch.cursor, ()):
            self.set_aside.append(reject)
            self.totals.scanned += 1
            self.totals.scanned_of_pool += Counter(filter(None, [reject["pool"]]))
        self.totals.add(batch)
        self._near_misses.add(batch.missed)
        return batch

    def _score_window(self, wanted: int | None) -> Iterator[ScoredBatch]:
        """Read, embed and search one window, then apply the rules to each batch of it."""
        started = time.perf_counter()
        size = LARGEST_WINDOW if wanted is None else max(wanted, SMALLEST_WINDOW)
        if (audit := self.totals.audit) is not None:
            audit.review(self.totals.scanned, self.config.target_recall)
            size = min(size, audit.next_review - self.totals.scanned)
        window: list[CaptionBatch] = []
        captions = 0
        while captions < min(size, LARGEST_WINDOW):
            batch = next(self._batches, None)
            if batch is None:
                break
            window.append(batch)
            captions += len(batch)
        self.totals.read_seconds += time.perf_counter() - started
        if not window:
            return iter(())
        if self.everything_passes:
            return iter([self._keep_all(batch) for batch in window])
        return self._decide(*self._sound(window, self._score(window)))

    def _sound(
        self, window: Sequence[CaptionBatch], scores: Scores
    ) -> tuple[Sequence[CaptionBatch], Scores]:
        """A scored window without the captions that have no usable vector, which are set aside."""
        sound = np.isfinite(scores.similarity)
        if scores.weight is not None:
            sound |= scores.weight == 0  # nobody asked for their vector
        if sound.all():
            return window, scores
        kept, self._broken = leave_out_broken(window, sound)
        num_scanned = self.totals.scanned + len(sound)
        check_limit(self._broken, before=self.set_aside, num_scanned=num_scanned)
        return kept, scores.of(sound)

    def _score(self, window: Sequence[CaptionBatch]) -> Scores:
        assert self._scores is not None  # it is None only where everything passes
        started = time.perf_counter()
        scores = self._scores(window, self.totals)
        self.totals.embed_seconds += time.perf_counter() - started - scores.search_seconds
        self.totals.search_seconds += scores.search_seconds
        return scores

    def _decide(self, window: Sequence[CaptionBatch], scores: Scores) -> Iterator[ScoredBatch]:
        """Apply the rule to each batch of a scored window, when the batch before is counted."""
        start = 0
        for batch in window:
            of_batch = scores.of(slice(start, start + len(batch)))
            start += len(batch)
            similarity, weight = of_batch.similarity, of_batch.weight
            mask, reason = self._rule(of_batch, self.totals)
            if weight is not None and self.totals.audit is not None:
                self.totals.audit.count(weight, weight[mask], reason)
            scored = np.flatnonzero(~np.isnan(similarity))
            rows = scored_rows(batch, similarity, of_batch.nearest, reason, self._entry_names)
            rows = rows.take(scored)
            kept = self._collect(rows.filter(mask[scored]))
            missed = rows.filter(~mask[scored])
            yield ScoredBatch(pool_names(batch), similarity[scored], kept, missed, batch.cursor)

    def _keep_all(self, batch: CaptionBatch) -> ScoredBatch:
        rows = scored_rows(batch, None, None, EVERYTHING, self._entry_names)
        kept, missed = self._collect(rows), rows.slice(0, 0)
        return ScoredBatch(rows["pool"], None, kept, missed, batch.cursor)

    @property
    def _counts_once(self) -> bool:
        return self.config.collection == "unique" and self.config.curation != "none"

    def _collect(self, rows: pa.Table) -> pa.Table:
        if not self._counts_once:
            return rows
        keys = self._unique_keys(rows)
        return rows.filter(first_of_each(keys, self._seen))

    def _unique_keys(self, rows: pa.Table) -> pa.ChunkedArray:
        """What may be kept once in an outer step of `unique` collection."""
        if len(self.order.names) > 1:
            # Two pools may have different pairs of the same key. No text key has a `|`.
            return pc.binary_join_element_wise(rows["pair_key"], rows["pool"], "|")
        return rows["pair_key"]

    def _shortfall(self) -> ShortfallError:
        totals = self.totals
        needed = max(self._num_asked, 1)
        # In `unique` mode a caption counts once, however often it was scanned.
        repeats = self.order.repeats(totals.scanned) if self.config.collection == "unique" else 1
        suggested = suggest_threshold(totals.histogram, needed * max(repeats, 1))
        if suggested is None:
            advice = (
                f"the pool has too few captions for {needed:,} pairs at any threshold: ask for "
                "fewer (--curate-every; in `cit curate` also --max-pairs), or raise --max-passes"
            )
        else:
            advice = (
                f"--threshold {suggested:.2f} would have kept enough; "
                "or raise --min-ratio or --max-passes, or take --on-shortfall train"
            )
        message = (
            f"outer step {self.step.number}, lane {self.lane}: {totals.scanned:,} captions "
            f"({self.config.max_passes} pool pass(es)) gave {totals.kept:,} of "
            f"{needed:,} pairs at threshold {self.config.threshold:g}; "
            f"the best similarity seen is {totals.best_similarity:.3f}; {advice}"
        )
        return ShortfallError(
            message, best_similarity=totals.best_similarity, suggested_threshold=suggested
        )
