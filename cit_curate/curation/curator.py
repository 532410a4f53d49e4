"""The curation of a run: the metadata, their index, and the scans of the pools."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import pyarrow as pa

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.lane_scan import LaneScan, OuterStep
from cit_curate.curation.rule import make_rule
from cit_curate.curation.scan_journal import ScanJournal
from cit_curate.curation.scan_ledger import ledger_rows, round_row
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scan_state import ScanState
from cit_curate.curation.scores.cascade import CascadeScores
from cit_curate.curation.scores.exact import ExactScores, LaneScores, WindowScores
from cit_curate.curation.scores.first_encoder import with_first
from cit_curate.curation.scores.score_cache import ScoreCache
from cit_curate.curation.scores.two_pass import two_pass_scores
from cit_curate.curation.threshold import SAMPLE_CAPTIONS, SimilaritySample, sample_similarity
from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import MetadataEntry, read_metadata
from cit_curate.metadata.stored_index import VersionedIndex
from cit_curate.metadata.vectors import distinct_prompts, embed_metadata, metadata_fingerprint
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Run
from cit_curate.storage.durable import FileEntry, write_json
from cit_curate.storage.vector_cache import VectorCache
from cit_curate.text_encoder.embedder import Embedder
from cit_curate.text_encoder.encoder import TextEncoder
from indexes.protocol import MetadataIndex

logger = logging.getLogger(__name__)

LaneProgress = Callable[[int, ScanTotals], None]
"""Called with a lane and its totals after each scanned batch."""


@dataclass(frozen=True)
class LaneSelection:
    """The pairs that one lane has selected.

    Attributes:
        scan: Their scan, from which more pairs can be taken.
        rows: The pairs, in arrival order.
        state: The state of the scan just after them.
    """

    scan: LaneScan
    rows: pa.Table
    state: ScanState


class Curator:
    """The metadata and their index, and the order in which each lane scans the pools.

    Attributes:
        kept: The vectors kept beside the pools, for the encoder that this curator is used with; it
            is written after each scan. None = none are kept.
        pairs_per_step: The pairs that `balance` shares out in a lane; None = the budget.
    """

    def __init__(
        self,
        pool: Pool | PoolMixture,
        metadata: MetadataConfig,
        config: CurateConfig,
        *,
        index_folder: Path | None = None,
        kept: VectorCache | None = None,
    ) -> None:
        self.pools = PoolMixture.of(pool)
        self.config = config
        self.kept = kept
        self.templates = metadata.templates
        # Without curation no caption is compared with the metadata, so none are required.
        needed = config.curation != "none" or metadata.metadata
        self.classes = read_metadata(metadata) if needed else None
        self.entries: Sequence[MetadataEntry] = self.classes.entries if self.classes else ()
        self.index = VersionedIndex(config.index, index_folder)
        self.pairs_per_step: int | None = None
        self._first: tuple[Embedder, MetadataIndex, ScoreCache] | None = None
        self._cache = ("", ScoreCache())
        self.orders = tuple(
            MixedOrder(
                self.pools,
                seed=config.seed,
                lane=lane,
                num_lanes=config.lanes,
                order=config.order,
                texts=config.texts,
            )
            for lane in range(config.lanes)
        )

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the entries, their own prompts included, and of the templates."""
        return metadata_fingerprint(self.entries, self.templates)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every text whose vector the index is made of; none without curation."""
        if self.config.curation == "none":
            return ()
        return distinct_prompts(self.entries, self.templates)

    def refresh(self, encoder: Embedder) -> MetadataIndex | None:
        """The index of the metadata under an encoder, built again only if the encoder changed.

        Returns:
            None without curation, where no caption is scored.
        """
        if self.config.curation == "none":
            return None
        embed = partial(embed_metadata, encoder.embed, self.entries, self.templates)
        version = hashlib.sha256(f"{encoder.fingerprint} {self.fingerprint}".encode()).hexdigest()
        return self.index.refresh(version, embed, device=encoder.device)

    def hold_to(self, encoder: Embedder) -> None:
        """Let `anchor` rank captions by this encoder too: the one that the run started with."""
        embed = partial(embed_metadata, encoder.embed, self.entries, self.templates)
        index = VersionedIndex(self.config.index, None)
        built = index.refresh(encoder.fingerprint, embed, device=encoder.device)
        self._first = (encoder, built, ScoreCache())

    def lane_scores(self, encoder: Embedder, index: MetadataIndex | None) -> LaneScores | None:
        """The scores of every lane, computed in this process.

        Args:
            encoder: The text encoder.
            index: The metadata under that encoder; None = nothing is scored.

        Returns:
            None without an index.
        """
        if index is None:
            return None

        def scores(lane: int, first: PoolCursor) -> WindowScores:
            exact = self._exact_scores(lane, encoder, index)
            if self.config.curation == "exact":
                return exact
            whole = cast(TextEncoder, encoder)  # always, in these
            if self.config.curation == "two-pass":
                return two_pass_scores(self.config, lane, encoder=whole, index=index, exact=exact)
            return CascadeScores(
                self.config,
                lane=lane,
                order=self.orders[lane],
                first=first,
                encoder=whole,
                index=index,
                exact=exact,
            )

        return scores

    def scan(
        self, step: OuterStep, lane: int, cursor: PoolCursor, scores: LaneScores | None
    ) -> LaneScan:
        """The scan of one lane in one outer step, before its first caption.

        Args:
            step: The outer step.
            lane: The number of the lane.
            cursor: The position at which the scan begins.
            scores: The scores of every lane; None without curation.
        """
        of_window: WindowScores | None = None
        if scores is not None and step.update >= self.config.skip_until:
            of_window = scores(lane, cursor)
            if self.config.anchor:
                of_window = with_first(self.config, lane, of_window, self._first_scores(lane))
        return LaneScan(
            self.config,
            self.orders[lane],
            pa.array([entry.name for entry in self.entries], pa.string()),
            step=step,
            lane=lane,
            cursor=cursor,
            scores=of_window,
            rule=make_rule(
                self.config,
                lane=lane,
                num_entries=len(self.entries),
                num_pairs=self.pairs_per_step or self.config.budget,
                scored=of_window is not None,
            ),
        )

    def run(
        self,
        step: OuterStep,
        cursors: Sequence[PoolCursor],
        scores: LaneScores | None,
        *,
        num_pairs: int | None,
        lanes: Sequence[int] | None = None,
        on_progress: LaneProgress | None = None,
        journal: Path | None = None,
    ) -> list[LaneSelection]:
        """Run one outer step: the next kept pairs of every lane, by caption alone.

        Args:
            step: The outer step.
            cursors: The position of the scan of each lane, for all lanes.
            scores: The scores of every lane; None without curation.
            num_pairs: The pairs of each lane; None = all that `max_passes` passes have.
            lanes: The lanes to run; None = all.
            on_progress: See `LaneProgress`.
            journal: The folder in which the scans are saved as they go, and from which they
                resume; None = they are not saved.

        Raises:
            ShortfallError: See `LaneScan.take`.
        """
        selections = []
        with self._keeping_vectors():
            for lane in range(self.config.lanes) if lanes is None else lanes:
                scan = self.scan(step, lane, cursors[lane], scores)
                progress = on_progress and partial(on_progress, lane)
                with nullcontext() if journal is None else ScanJournal(journal, scan) as saved:
                    on_kept = saved.add if saved is not None else None
                    rows = scan.take(num_pairs, progress, on_kept)
                selections.append(LaneSelection(scan, rows, scan.state(rows)))
        if step.number == 0 and all(selection.scan.kept_all for selection in selections):
            logger.warning(
                "every caption is kept (ratio 1.0), so nothing is curated: raise --threshold %g, "
                "or give --curation none",
                self.config.threshold,
            )
        return selections

    def sample(self, encoder: Embedder, *, num_captions: int = SAMPLE_CAPTIONS) -> SimilaritySample:
        """The similarities of the first captions of lane 0, which its scan does not embed again.

        Raises:
            ConfigError: The run does not curate, so it compares no captions.
            NotFiniteError: No caption has a usable vector.
        """
        index = self.refresh(encoder)
        if index is None:
            raise ConfigError("--curation none compares no captions; a sample would show nothing")
        scores = self._exact_scores(0, encoder, index)
        with self._keeping_vectors():
            return sample_similarity(
                self.orders[0], scores, self.entries, num_captions=num_captions
            )

    def write_entries(self, run: Run) -> None:
        """Write `metadata.json`: the entries, by their `metadata_id` in the ledger."""
        write_json(run.path / "metadata.json", [asdict(entry) for entry in self.entries])

    def _exact_scores(self, lane: int, encoder: Embedder, index: MetadataIndex) -> ExactScores:
        """The exact scores of a lane; those of one encoder are shared by all lanes and samples."""
        if self._cache[0] != encoder.fingerprint:
            self._cache = (encoder.fingerprint, ScoreCache())
        for order in self.orders:
            order.take_tokens(encoder.tokenizer_key)
        return ExactScores(self.config, lane, encoder, index, self._cache[1])

    def _first_scores(self, lane: int) -> ExactScores:
        """The scores of a lane under the encoder of the start, cached for all outer steps.

        Raises:
            ConfigError: Nothing trains, so there is no other encoder than today's.
        """
        if self._first is None:
            raise ConfigError("--anchor is for training: a single selection has only one encoder")
        return ExactScores(self.config, lane, *self._first)

    @contextmanager
    def _keeping_vectors(self) -> Iterator[None]:
        """Write the vectors that the block has embedded, also when it fails."""
        try:
            yield
        finally:
            if self.kept is not None:
                self.kept.flush()


def vectors_beside(pools: PoolMixture, config: TextTowerConfig) -> VectorCache | None:
    """The vectors kept beside pools; None = the config keeps none."""
    folders = [each.pool.path for each in pools if not each.pool.is_remote]
    return VectorCache.beside(folders, max_bytes=config.vector_cache_bytes)


def write_scan(run: Run, scan: LaneScan, rows: pa.Table) -> list[FileEntry]:
    """Write the ledger tables of a scan; `rows` are the selected pairs."""
    named = {"outer_step": scan.step.number, "lane": scan.lane}
    selected = ledger_rows(scan, rows, "selections")
    missed = ledger_rows(scan, scan.near_misses, "near_misses")
    return [
        run.write_table("selections", selected, **named),
        run.write_table("near_misses", missed, **named),
        run.write_table("rounds", round_row(scan, selected=len(rows), pools=rows["pool"]), **named),
    ]
