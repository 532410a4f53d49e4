"""The scan of one lane in one outer step: captions are read until the budget is full.

`LaneScan.take` returns the next kept pairs in arrival order. Behind it, `_scan_from` starts where
the last outer step ended, and repeats: read a window of captions, score it, apply the rule batch by
batch. Another `take` continues the scan, which is how a pair whose image cannot be opened is
replaced.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cit_curate.config import CurateConfig
from cit_curate.curation.near_misses import NearMisses
from cit_curate.curation.policies.decision import Candidates
from cit_curate.curation.reserve import Reserve
from cit_curate.curation.rule import Rule
from cit_curate.curation.scan_rows import (
    SCORED_SCHEMA,
    ScanTotals,
    ScoredBatch,
    count_values,
    pool_names,
    scored_rows,
)
from cit_curate.curation.scan_state import ScanState
from cit_curate.curation.scores.audit import new_audit
from cit_curate.curation.scores.broken_vectors import Rejects, check_limit, leave_out_broken
from cit_curate.curation.scores.exact import Scores, WindowScores, unscored
from cit_curate.curation.selection import NEXT_BEST, first_of_each
from cit_curate.curation.shortfall import shortfall_error
from cit_curate.records import CaptionBatch, CaptionOrder, PoolCursor

NEAR_MISSES_PER_ENTRY = 5
# Captions of a window, which are read and embedded at once. The smallest fills the length buckets;
# the largest bounds memory, and what is embedded in vain after the last batch.
SMALLEST_WINDOW = 1_024
LARGEST_WINDOW = 16_384

ScanProgress = Callable[[ScanTotals], None]
KeptRows = Callable[[pa.Table], None]


@dataclass(frozen=True)
class OuterStep:
    """An outer step.

    Attributes:
        number: Its number, from 0.
        update: The updates made before it.
        encoder: The fingerprint of the text encoder that it selects with.
    """

    number: int
    update: int
    encoder: str


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
        """Set up a scan; nothing is read yet.

        Args:
            config: The collection, the batch size and the passes that the scan may make.
            order: The lane's captions, in scan order.
            entry_names: string [entries], the names of the metadata entries.
            step: The outer step.
            lane: The number of the lane.
            cursor: The position where the scan of the last outer step ended.
            scores: The function that scores a window; None = every caption is kept, unscored.
            rule: The policies that decide which captions of a scored batch are kept.
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
        self._scored = self._scan_from(cursor)
        self._surplus = self.near_misses
        self._seen: set[str] = set()
        self._num_requested = 0
        # With a limit for each entry, the rest of the budget may have to come from what it held up.
        self._reserve = Reserve() if config.balance else None
        self._set_aside: list[Mapping[str, Any]] = []

    def state(self, rows: pa.Table) -> ScanState:
        """The state of the scan, once `rows` have been taken."""
        taken = self._unique_keys(rows).to_pylist() if self._counts_once else []
        return ScanState(
            self.cursor,
            copy.deepcopy(self.totals),
            self._num_requested,
            self.near_misses,
            self._surplus,
            taken,
            tuple(self._set_aside),
            None if self._reserve is None else self._reserve.rows,
        )

    def resume_from(self, state: ScanState) -> None:
        """Resume from the state of a scan of the same lane and outer step.

        The captions after it may be embedded in other windows, which changes no vector.
        """
        self.cursor = state.cursor
        self.totals = copy.deepcopy(state.totals)
        self._near_misses = NearMisses(state.near_misses, best=NEAR_MISSES_PER_ENTRY)
        self._surplus = state.surplus
        self._num_requested = state.num_requested
        self._set_aside = [*state.set_aside]
        if self._reserve is not None:
            self._reserve = Reserve(state.reserve)
        if self._counts_once:
            self._seen = {*state.taken, *self._unique_keys(state.surplus).to_pylist()}
        self._scored = self._scan_from(self.cursor)

    @property
    def near_misses(self) -> pa.Table:
        """The best pairs that were not kept: `NEAR_MISSES_PER_ENTRY` per entry, best first."""
        return self._near_misses.rows

    @property
    def everything_passes(self) -> bool:
        """Whether no caption is scored: without curation, and before `skip_until`."""
        return self._scores is None

    @property
    def kept_all(self) -> bool:
        """Whether captions were scored, and every one was kept."""
        return not self.everything_passes and self.totals.kept == self.totals.scanned > 0

    def take(
        self,
        num_pairs: int | None,
        on_progress: ScanProgress | None = None,
        on_kept: KeptRows | None = None,
    ) -> pa.Table:
        """The next kept pairs, in arrival order.

        Args:
            num_pairs: The number of pairs; None = all that the passes have.
            on_progress: Called with the totals after each scanned batch.
            on_kept: Called with the kept rows of each scanned batch, before `on_progress`.

        Returns:
            Table with `SCORED_SCHEMA`.

        Raises:
            ShortfallError: The passes over the pool ended first, and on_shortfall is "error"; or
                they ended without one pair.
            NotFiniteError: Too many captions have a vector that is NaN, infinite or zero.
        """
        if num_pairs is None and self.config.curation == "none":
            num_pairs = self._max_captions
        self._num_requested += num_pairs or 0
        kept = [self._surplus]
        num_kept = len(self._surplus)
        last_kept_at = self.totals.scanned
        while num_pairs is None or num_kept < num_pairs:
            batch = next(self._scored, None)
            if batch is None:
                if num_pairs is not None:
                    kept.append(self._from_reserve(num_pairs - num_kept))
                break
            self._count(batch)
            kept.append(batch.kept)
            num_kept += len(batch.kept)
            if len(batch.kept):
                last_kept_at = self.totals.scanned
            elif self.totals.scanned - last_kept_at > self.order.length and self.everything_passes:
                break  # all of the pool is excluded, and without curation its passes never end
            if on_kept is not None:
                on_kept(batch.kept)
            if on_progress is not None:
                on_progress(self.totals)
        rows = pa.concat_tables(kept)
        is_short = num_pairs is not None and len(rows) < num_pairs
        if not self.totals.kept or (is_short and self.config.on_shortfall == "error"):
            # In `unique` mode a caption counts once, however often it was scanned.
            is_unique = self.config.collection == "unique"
            repeats = self.order.repeats(self.totals.scanned) if is_unique else 1
            raise shortfall_error(
                self.config,
                self.totals,
                where=f"outer step {self.step.number}, lane {self.lane}",
                needed=max(self._num_requested, 1),
                repeats=max(repeats, 1),
            )
        self._surplus = rows.slice(len(rows) if num_pairs is None else num_pairs)
        if self.config.curation == "none" and len(self._surplus):
            self._give_back_surplus()
        return rows.slice(0, num_pairs)

    def reject_rows(self) -> list[dict[str, Any]]:
        """The `rejects` rows of the scan: captions whose vector is NaN, infinite or zero."""
        return [
            {"outer_step": self.step.number, "lane": self.lane, **reject}
            for reject in self._set_aside
        ]

    @property
    def _max_captions(self) -> int:
        return self.config.max_passes * self.order.length

    def _count(self, batch: ScoredBatch) -> None:
        self.cursor = batch.cursor
        self._set_aside.extend(batch.rejects)
        self.totals.add(batch)
        self._near_misses.add(batch.missed)

    def _give_back_surplus(self) -> None:
        """Move the scan back to just after the last pair taken.

        Without curation every pair comes in its turn. A curated step instead drops what is left of
        its last batch (docs/method.md, outer step, 1).
        """
        first = self._surplus["scan_position"][0].as_py()
        scanned = self.cursor.pass_index * self.order.length + self.cursor.position - first
        self.cursor = PoolCursor(*divmod(first, self.order.length))
        self.totals.scanned -= scanned
        self.totals.kept -= len(self._surplus)
        for batch in self.order.batches(self.cursor, scanned, scanned):  # some may be excluded
            self.totals.scanned_of_pool -= count_values(pool_names(batch))
        self.totals.kept_of_pool -= count_values(self._surplus["pool"])
        self.totals.kept_of_reason -= count_values(self._surplus["reason"])
        self._surplus = self._surplus.slice(0, 0)
        self._scored = self._scan_from(self.cursor)

    def _scan_from(self, cursor: PoolCursor) -> Iterator[ScoredBatch]:
        """The scored batches from a cursor to the end of the passes.

        Each batch is counted before the next one is decided, and before the next window is read.
        """
        # Without curation the budget is always met, so the passes have no limit.
        limit = None if self.config.curation == "none" else self._max_captions - self.totals.scanned
        batches = self.order.batches(cursor, 2 * self.config.batch_size, limit)
        while window := self._read_window(batches):
            if self.everything_passes:
                yield from map(self._keep_all, window)
            else:
                yield from self._decide(*self._leave_out_broken(window, self._score(window)))

    def _read_window(self, batches: Iterator[CaptionBatch]) -> list[CaptionBatch]:
        """The batches of the next window; none when the passes are over."""
        started = time.perf_counter()
        size = LARGEST_WINDOW
        if self._num_requested:
            size = max(self._num_requested - self.totals.kept, SMALLEST_WINDOW)
        if (audit := self.totals.audit) is not None:
            audit.review(self.totals.scanned, self.config.target_recall)
            size = min(size, audit.next_review - self.totals.scanned)
        window: list[CaptionBatch] = []
        num_captions = 0
        while num_captions < min(size, LARGEST_WINDOW):
            batch = next(batches, None)
            if batch is None:
                break
            window.append(batch)
            num_captions += len(batch)
        self.totals.read_seconds += time.perf_counter() - started
        return window

    def _score(self, window: Sequence[CaptionBatch]) -> Scores:
        assert self._scores is not None  # it is None only where everything passes
        started = time.perf_counter()
        scores = self._scores(window, self.totals)
        self.totals.embed_seconds += time.perf_counter() - started - scores.search_seconds
        self.totals.search_seconds += scores.search_seconds
        return scores

    def _leave_out_broken(
        self, window: Sequence[CaptionBatch], scores: Scores
    ) -> tuple[Sequence[CaptionBatch], Scores, Rejects]:
        """A scored window without the captions that have no usable vector, and these as rejects."""
        sound = np.isfinite(scores.similarity)
        if scores.weight is not None:
            sound |= scores.weight == 0  # skipped by a cascade, so not embedded
        if sound.all():
            return window, scores, {}
        kept, rejects = leave_out_broken(window, sound)
        num_scanned = self.totals.scanned + len(sound)
        check_limit(rejects, before=self._set_aside, num_scanned=num_scanned)
        return kept, scores.of(sound), rejects

    def _decide(
        self, window: Sequence[CaptionBatch], scores: Scores, rejects: Rejects
    ) -> Iterator[ScoredBatch]:
        """Apply the rule to each batch of a scored window."""
        start = 0
        for batch in window:
            of_batch = scores.of(slice(start, start + len(batch)))
            start += len(batch)
            similarity, weight = of_batch.similarity, of_batch.weight
            decision = self._rule(Candidates(batch, of_batch, self.totals))
            mask = decision.kept
            if weight is not None and self.totals.audit is not None and len(batch):
                # A cascade has one policy, so the batch has one reason.
                self.totals.audit.count(weight, weight[mask], decision.reason[0])
            scored = np.flatnonzero(~np.isnan(similarity))
            reason = pa.array(decision.reason, pa.string())
            rows = scored_rows(batch, similarity, of_batch.nearest, reason, self._entry_names)
            rows = rows.take(scored)
            kept = self._collect(rows.filter(mask[scored]))
            missed = rows.filter(~mask[scored])
            if self._reserve is not None:
                waiting = decision.may_wait[scored]
                self._reserve.add(
                    rows.filter(waiting), decision.rank[scored][waiting], size=self._num_requested
                )
            yield ScoredBatch(
                pool_names(batch),
                similarity[scored],
                kept,
                missed,
                batch.cursor,
                rejects.get(batch.cursor, ()),
                None if of_batch.first is None else of_batch.first[scored],
            )

    def _keep_all(self, batch: CaptionBatch) -> ScoredBatch:
        decision = self._rule(Candidates(batch, unscored(len(batch)), self.totals))
        reason = pa.array(decision.reason, pa.string())
        rows = scored_rows(batch, None, None, reason, self._entry_names)
        kept, missed = self._collect(rows.filter(decision.kept)), rows.slice(0, 0)
        return ScoredBatch(rows["pool"], None, kept, missed, batch.cursor)

    def _from_reserve(self, count: int) -> pa.Table:
        """The next best captions of the passes, when these have ended before the budget is full."""
        rows = SCORED_SCHEMA.empty_table()
        while self._reserve is not None and len(rows) < count:
            best = self._reserve.take(count - len(rows))
            if not len(best):
                break
            rows = pa.concat_tables([rows, self._collect(best)])
        reason = pa.repeat(NEXT_BEST, len(rows))
        rows = rows.set_column(rows.schema.get_field_index("reason"), "reason", reason)
        self.totals.add_kept(rows)
        return rows

    @property
    def _counts_once(self) -> bool:
        return self.config.collection == "unique" and self.config.curation != "none"

    def _collect(self, rows: pa.Table) -> pa.Table:
        if not self._counts_once:
            return rows
        keys = self._unique_keys(rows)
        return rows.filter(first_of_each(keys, self._seen))

    def _unique_keys(self, rows: pa.Table) -> pa.ChunkedArray:
        """The keys that an outer step of `unique` collection keeps once."""
        if len(self.order.names) > 1:
            # Two pools may have different pairs with the same key. No text key has a `|`.
            return pc.binary_join_element_wise(rows["pair_key"], rows["pool"], "|")
        return rows["pair_key"]
