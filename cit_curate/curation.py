"""Curation without training: one outer step, or a whole pass, into a run folder."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curator import LaneScan, ScanState, ScanTotals
from cit_curate.environment import describe_environment
from cit_curate.errors import ConfigError
from cit_curate.ledger import Commit, Run
from cit_curate.metadata.entries import MetadataEntry, load_metadata
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import Embedder, Float32, PoolCursor
from cit_curate.text_encoder import TextEncoder, embed_metadata
from cit_curate.threshold import SimilaritySample, sample_similarity
from indexes.durable import FileEntry, write_json
from indexes.protocol import MetadataIndex
from indexes.versioned import VersionedIndex

ScanProgress = Callable[[int, ScanTotals], None]


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

        def embed() -> Float32:
            return embed_metadata(encoder.embed, self.entries, self.templates)

        version = hashlib.sha256(f"{encoder.fingerprint} {self.fingerprint}".encode())
        return self.index.refresh(version.hexdigest(), embed)

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

        Raises:
            ShortfallError: See `LaneScan.take`.
        """
        selections = []
        for lane in range(self.config.lanes) if lanes is None else lanes:
            place = {"outer_step": outer_step, "lane": lane, "update": update}
            scan = self.scan(encoder, index, cursors[lane], **place)
            scan.on_progress = _for_lane(on_progress, lane)
            rows = scan.take(num_pairs)
            # From here on it is asked for replacements, by the thread that writes the shards.
            scan.on_progress = None
            selections.append(LaneSelection(scan, rows, scan.state(rows)))
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
        )

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
    selected = scan.ledger_rows(rows, "selections")
    missed = scan.ledger_rows(scan.near_misses, "near_misses")
    return [
        run.write_table("selections", selected, **place),
        run.write_table("near_misses", missed, **place),
        run.write_table("rounds", scan.round_row(selected=len(rows), pools=rows["pool"]), **place),
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
    overwrite: bool = False,
    on_progress: ScanProgress | None = None,
) -> Run:
    """One outer step without training, committed to a new run folder.

    Several pools are one `PoolMixture.open(["A=0.7", "B=0.3"])`.

    Raises:
        ConfigError: The folder is not empty, or the encoder or metadata are not to be had.
        ShortfallError: See `LaneScan.take`.
    """
    Run.check_free(out, overwrite=overwrite)
    encoder = TextEncoder.load(text, device=device)
    curator = Curator(pool, metadata, config)
    settings = {
        **curator.pools.settings(),
        "metadata_fingerprint": curator.fingerprint,
        **asdict(metadata),
        **asdict(text),
        **asdict(config),
        "max_pairs": num_pairs,
    }
    selections = curator.run(
        encoder,
        curator.refresh(encoder),
        [PoolCursor()] * config.lanes,
        outer_step=0,
        update=0,
        num_pairs=num_pairs,
        on_progress=on_progress,
    )
    run = Run.create(out, config=settings, environment=describe_environment(), overwrite=overwrite)
    curator.write_entries(run)
    files = []
    for each in selections:
        run.log(each.scan.metrics_record())
        files += write_scan(run, each.scan, each.rows)
    cursors = tuple(each.scan.cursor for each in selections)
    run.commit(Commit(outer_step=0, update=0, cursors=cursors, files=tuple(files)))
    return run


def _for_lane(on_progress: ScanProgress | None, lane: int) -> Callable[[ScanTotals], None] | None:
    if on_progress is None:
        return None
    return lambda totals: on_progress(lane, totals)
