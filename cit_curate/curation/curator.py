"""Curation without training: one outer step, or a whole pass, into a run folder."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from cit_curate.config import (
    IN_PROCESS,
    CurateConfig,
    EngineConfig,
    MetadataConfig,
    TextTowerConfig,
)
from cit_curate.curation.lane_scan import LaneScan, ScanState
from cit_curate.curation.scan_ledger import ledger_rows, metrics_record, round_row
from cit_curate.curation.scan_rows import ScanTotals
from cit_curate.curation.scores.exact import WindowScores
from cit_curate.curation.scores.score_cache import KnownScores
from cit_curate.curation.scores.staged import (
    CAPTIONS_PER_WORKER,
    ScoredLane,
    Tower,
    embedder,
    open_scan,
)
from cit_curate.curation.threshold import SimilaritySample, sample_similarity
from cit_curate.engines.engine import open_engine
from cit_curate.engines.workers import Mapper
from cit_curate.errors import ConfigError
from cit_curate.metadata.entries import MetadataEntry, load_metadata
from cit_curate.metadata.stored_index import VersionedIndex
from cit_curate.metadata.vectors import embed_metadata
from cit_curate.pool.build.place import staging_folder
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import Embedder, Float32, PoolCursor
from cit_curate.run.environment import describe_environment
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.storage.durable import FileEntry, check_room, write_json
from cit_curate.storage.lock import writer_lock
from cit_curate.text_encoder.encoder import TextEncoder, choose_device
from indexes.protocol import MetadataIndex

logger = logging.getLogger(__name__)

ScanProgress = Callable[[int, ScanTotals], None]
LaneScores = Callable[[int], WindowScores]


@dataclass(frozen=True)
class LaneSelection:
    """What one lane's scan gave: the pairs that were asked for, and the scan, to ask it further.

    Attributes:
        scan: The scan.
        rows: The pairs, in arrival order.
        state: How the scan stood when it had given them.
    """

    scan: LaneScan
    rows: pa.Table
    state: ScanState


class Curator:
    """The outer loop's side of a run: metadata, their index, and each lane's scan of the pools."""

    def __init__(
        self,
        pool: Pool | PoolMixture,
        metadata: MetadataConfig,
        config: CurateConfig,
        *,
        index_folder: Path | None = None,
    ) -> None:
        self.pools = PoolMixture.of(pool)
        self.config = config
        self.templates = metadata.templates
        # Without curation nothing is compared with them, so none need be given.
        needed = config.curation != "none" or metadata.metadata
        self.entries: Sequence[MetadataEntry] = load_metadata(metadata) if needed else ()
        self.index = VersionedIndex(config.index, index_folder)
        self._known: tuple[str, KnownScores] = ("", KnownScores())
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
        """SHA-256 of the entries, with prompts of their own, and the templates."""
        described = json.dumps([[asdict(entry) for entry in self.entries], self.templates])
        return hashlib.sha256(described.encode()).hexdigest()

    def refresh(self, encoder: Embedder) -> MetadataIndex | None:
        """The index of the metadata under an encoder; rebuilt only if the encoder changed.

        Returns:
            None without curation, which compares nothing.
        """
        if self.config.curation == "none":
            return None
        if isinstance(encoder, TextEncoder):
            for order in self.orders:
                order.take_tokens(encoder.tokenizer_key)

        def embed() -> Float32:
            return embed_metadata(encoder.embed, self.entries, self.templates)

        version = hashlib.sha256(f"{encoder.fingerprint} {self.fingerprint}".encode())
        device = encoder.device if isinstance(encoder, TextEncoder) else "cpu"
        return self.index.refresh(version.hexdigest(), embed, device=device)

    def run(
        self,
        encoder: Embedder,
        index: MetadataIndex | None,
        cursors: Sequence[PoolCursor],
        *,
        outer_step: int,
        update: int,
        num_pairs: int | None,
        lanes: Sequence[int] | None = None,
        on_progress: ScanProgress | None = None,
        scores: LaneScores | None = None,
    ) -> list[LaneSelection]:
        """One outer step: the next kept pairs of every lane, by caption alone.

        Args:
            encoder: The text encoder as it is now.
            index: The metadata under that encoder; None without curation.
            cursors: Where each lane's scan stands, of all lanes.
            outer_step: Its number.
            update: Updates made so far.
            num_pairs: Pairs of each lane; None = all that `max_passes` passes have.
            lanes: Only these lanes; None = all.
            on_progress: Called with lane and totals after each scanned batch.
            scores: Where a lane's scores come from; None embeds and searches here.

        Raises:
            ShortfallError: See `LaneScan.take`.
        """
        selections = []
        for lane in range(self.config.lanes) if lanes is None else lanes:
            scan = self.scan(
                encoder,
                index,
                cursors[lane],
                outer_step=outer_step,
                lane=lane,
                update=update,
                scores=scores and scores(lane),
            )
            scan.on_progress = _for_lane(on_progress, lane)
            rows = scan.take(num_pairs)
            # From here on it is asked for replacements, by the thread that writes the shards.
            scan.on_progress = None
            selections.append(LaneSelection(scan, rows, scan.state(rows)))
        if outer_step == 0 and all(each.scan.kept_all for each in selections):
            logger.warning(
                "every caption is kept (ratio 1.0), so nothing is curated: raise --threshold %g, "
                "or give --curation none",
                self.config.threshold,
            )
        return selections

    def scan(
        self,
        encoder: Embedder,
        index: MetadataIndex | None,
        cursor: PoolCursor,
        *,
        outer_step: int,
        lane: int,
        update: int,
        scores: WindowScores | None = None,
    ) -> LaneScan:
        """The scan of one lane in one outer step, before its first caption."""
        return LaneScan(
            self.config,
            order=self.orders[lane],
            entries=self.entries,
            encoder=encoder,
            index=index,
            cursor=cursor,
            outer_step=outer_step,
            lane=lane,
            update=update,
            scores=scores,
            known=self._known_scores(encoder),
        )

    def _known_scores(self, encoder: Embedder) -> KnownScores:
        """What all lanes have scored under this encoder."""
        if self._known[0] != encoder.fingerprint:
            self._known = (encoder.fingerprint, KnownScores())
        return self._known[1]

    @property
    def prompts(self) -> list[str]:
        """Every text that the index of the metadata is made of; none without curation."""
        if self.config.curation == "none":
            return []
        return [text for entry in self.entries for text in entry.texts(self.templates)]

    def scores_ahead(
        self,
        mapped: Mapper,
        staging: Path,
        tower: Tower,
        encoder: Embedder,
        index: MetadataIndex,
    ) -> LaneScores:
        """What gives each lane its scores, from its first caption on, made by an engine."""
        scan = open_scan(
            staging,
            self.pools,
            self.config,
            tower,
            encoder=encoder.fingerprint,
            metadata=self.fingerprint,
            index=index,
        )
        passes = self.config.max_passes
        return lambda lane: ScoredLane(mapped, scan, lane, passes * self.orders[lane].length)

    def write_entries(self, run: Run) -> None:
        """Write `metadata.json`: the entries; `metadata_id` in the ledger counts them from 0."""
        write_json(run.path / "metadata.json", [asdict(entry) for entry in self.entries])

    def sample(self, encoder: Embedder) -> SimilaritySample:
        """Similarities of the first captions of lane 0's scan.

        Raises:
            ConfigError: Without curation there is nothing to compare captions with.
        """
        index = self.refresh(encoder)
        if index is None:
            raise ConfigError("--curation none compares no captions; a sample would show nothing")
        return sample_similarity(self.orders[0], encoder, index, self.entries)


def write_scan(run: Run, scan: LaneScan, rows: pa.Table) -> list[FileEntry]:
    """Write the ledger tables of a scan; `rows` are its selection."""
    place = {"outer_step": scan.outer_step, "lane": scan.lane}
    selected = ledger_rows(scan, rows, "selections")
    missed = ledger_rows(scan, scan.near_misses, "near_misses")
    return [
        run.write_table("selections", selected, **place),
        run.write_table("near_misses", missed, **place),
        run.write_table("rounds", round_row(scan, selected=len(rows), pools=rows["pool"]), **place),
    ]


def curate(
    pool: Pool | PoolMixture,
    metadata: MetadataConfig,
    text: TextTowerConfig,
    config: CurateConfig,
    out: Path,
    *,
    num_pairs: int | None,
    device: str = "auto",
    engine: EngineConfig = IN_PROCESS,
    overwrite: bool = False,
    on_progress: ScanProgress | None = None,
) -> Run:
    """One outer step without training, committed to a new run folder.

    Several pools are one `PoolMixture.open(["A=0.7", "B=0.3"])`.

    What is scored is kept in `.staging-OUT` beside the run until it is there: after a kill, or for
    another threshold after a shortfall, the same command scores only what is missing.

    A cascade works in this process alone, and keeps no scores.

    Raises:
        ConfigError: The folder is not empty, the encoder or metadata are not to be had, or a
            cascade was to have several workers.
        ShortfallError: See `LaneScan.take`.
        ResourceError: A worker was killed, or another curation writes this run.
    """
    is_cascade = config.curation == "cascade"
    if is_cascade and (engine.engine != "local" or engine.workers > 1):
        raise ConfigError(
            "--curation cascade works in one process: leave out --engine and --workers, or take "
            "--curation exact"
        )
    Run.check_free(out, overwrite=overwrite)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    check_room(out.parent)
    staging = staging_folder(out)
    curator = Curator(pool, metadata, config)
    most_useful = _most_useful(curator, engine, device)
    with (
        writer_lock(out),
        open_engine(engine, most_useful=most_useful, uses_gpus=device != "cpu") as workers,
    ):
        tower = Tower(text, device, num_threads=int(workers.num_workers > 1))
        encoder: Embedder
        if is_cascade:
            encoder = TextEncoder.load(text, device=device)
        else:
            encoder = embedder(workers.mapped, tower, curator.prompts)
        index = curator.refresh(encoder)
        selections = curator.run(
            encoder,
            index,
            [PoolCursor()] * config.lanes,
            outer_step=0,
            update=0,
            num_pairs=num_pairs,
            on_progress=on_progress,
            scores=None
            if index is None or is_cascade
            else curator.scores_ahead(workers.mapped, staging, tower, encoder, index),
        )
        settings = {
            **curator.pools.settings(),
            "metadata_fingerprint": curator.fingerprint,
            **asdict(metadata),
            **asdict(text),
            **asdict(config),
            "max_pairs": num_pairs,
        }
        environment = describe_environment()
        with Run.create_whole(
            out, config=settings, environment=environment, overwrite=overwrite
        ) as run:
            curator.write_entries(run)
            files = []
            for each in selections:
                run.log(metrics_record(each.scan))
                files += write_scan(run, each.scan, each.rows)
                if rejects := each.scan.reject_rows():
                    table = pa.Table.from_pylist(rejects, schema=SCHEMAS["rejects"])
                    place = {"outer_step": 0, "lane": each.scan.lane}
                    files.append(run.write_table("rejects", table, **place))
            cursors = tuple(each.scan.cursor for each in selections)
            run.commit(Commit(outer_step=0, update=0, cursors=cursors, files=tuple(files)))
        shutil.rmtree(staging, ignore_errors=True)
    return Run(out)


def _most_useful(curator: Curator, engine: EngineConfig, device: str) -> int:
    """Workers that are worth their start here; one where they would share a GPU."""
    if engine.engine == "local" and choose_device(device).type == "cuda":
        return 1
    captions = sum(order.length for order in curator.orders) * curator.config.max_passes
    return max(1, captions // CAPTIONS_PER_WORKER)


def _for_lane(on_progress: ScanProgress | None, lane: int) -> Callable[[ScanTotals], None] | None:
    if on_progress is None:
        return None
    return lambda totals: on_progress(lane, totals)
