"""Curation without training: one outer step, or whole passes, into a run folder."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from cit_curate.config import (
    IN_PROCESS,
    CurateConfig,
    EngineConfig,
    MetadataConfig,
    TextTowerConfig,
)
from cit_curate.curation.curator import (
    Curator,
    LaneProgress,
    LaneSelection,
    vectors_beside,
    write_scan,
)
from cit_curate.curation.lane_scan import OuterStep
from cit_curate.curation.scan_journal import JOURNAL_VERSION
from cit_curate.curation.scan_ledger import metrics_record
from cit_curate.curation.scores.exact import LaneScores
from cit_curate.curation.scores.score_range import (
    EmbedTask,
    PrecomputedEmbedder,
    ScoreSource,
    Tower,
    embed_texts,
    pool_paths,
)
from cit_curate.curation.scores.staged import open_staging, staged_scores
from cit_curate.engines.engine import open_engine
from cit_curate.engines.workers import Mapper
from cit_curate.errors import ConfigError
from cit_curate.pool.build.place import staging_folder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.processor import has_int8
from cit_curate.records import PoolCursor
from cit_curate.run.environment import describe_environment
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.ledger_tables import SCHEMAS
from cit_curate.storage.durable import check_room
from cit_curate.storage.lock import writer_lock
from cit_curate.text_encoder.encoder import TextEncoder, choose_device

# Captions from which a worker is worth its start, which takes seconds for torch and the text tower.
# Measured on 2 busy cores with MiniLM, 17,964 captions: 2 processes of one thread 40 s, one process
# of two threads 97 s; forward passes of 64 short rows are too small to share.
CAPTIONS_PER_WORKER = 8_192
# Captions from which a scan keeps its scores in files: a minute of a CPU's work.
STAGED_CAPTIONS = 32_768


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
    on_progress: LaneProgress | None = None,
) -> Run:
    """Select pairs in one outer step without training, and commit them to a new run folder.

    A long scan, or one that several workers share, keeps its scores in `.staging-OUT` beside the
    run until the run is complete. After a kill, or with another threshold after a shortfall, the
    same command scores only what is missing. A cascade and two-pass scores are made in this process
    alone: what it has selected is saved there as it goes, and the same command goes on from there.

    Args:
        pool: The pool, or several as `PoolMixture.open(["A=0.7", "B=0.3"])`.
        metadata: The class names.
        text: The text tower.
        config: The rules.
        out: The folder of the new run.
        num_pairs: The pairs of each lane; None = all that the passes have.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        engine: The engine that scores captions.
        overwrite: Whether to replace a run at `out`.
        on_progress: See `LaneProgress`.

    Raises:
        ConfigError: The folder is not empty, the encoder or the metadata cannot be loaded, a
            curation for one process is combined with several workers, or a policy is for training.
        ShortfallError: See `LaneScan.take`.
        ResourceError: A worker was killed, or another curation writes this run.
    """
    is_for_one = config.curation in ("cascade", "two-pass")
    if is_for_one and (engine.engine != "local" or engine.workers > 1):
        raise ConfigError(
            f"--curation {config.curation} works in one process: leave out --engine and --workers, "
            "or take --curation exact"
        )
    Run.check_free(out, overwrite=overwrite)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    check_room(out.parent)
    staging = staging_folder(out)
    pools = PoolMixture.of(pool)
    curator = Curator(pools, metadata, config, kept=vectors_beside(pools, text))
    captions = sum(order.length for order in curator.orders) * config.max_passes
    curator.pairs_per_step = num_pairs or _pairs_to_share(curator)
    most_useful = max(1, captions // CAPTIONS_PER_WORKER)
    if engine.engine == "local" and choose_device(device).type == "cuda":
        most_useful = 1  # they would share a GPU
    with (
        writer_lock(out),
        open_engine(engine, most_useful=most_useful, uses_gpus=device != "cpu") as workers,
    ):
        folder = None if curator.kept is None else curator.kept.folder.absolute()
        tower = Tower(text, device, num_threads=int(workers.num_workers > 1), kept=folder)
        is_alone = engine.engine == "local" and workers.num_workers == 1
        is_short = captions < STAGED_CAPTIONS and not staging.exists()
        journal = None
        if is_for_one or (is_alone and is_short):
            encoder, scores = _scored_here(curator, tower)
            if not is_short:
                journal = open_staging(staging, _journal_key(curator, encoder, device))
        else:
            encoder, scores = _scored_ahead(curator, metadata, tower, staging, workers.mapped)
        selections = curator.run(
            OuterStep(number=0, update=0, encoder=encoder),
            [PoolCursor()] * config.lanes,
            scores,
            num_pairs=num_pairs,
            on_progress=on_progress,
            journal=journal,
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
            _write(run, curator, selections)
        shutil.rmtree(staging, ignore_errors=True)
    return Run(out)


def _pairs_to_share(curator: Curator) -> int | None:
    """The pairs that whole passes give each lane, which `balance` has to know before.

    Raises:
        ConfigError: Only the scan itself can say.
    """
    config = curator.config
    if not config.balance:
        return None
    if not config.keep_ratio:
        raise ConfigError(
            "--balance shares out a number of pairs: give --max-pairs N, or --keep-ratio R"
        )
    captions = max(order.length for order in curator.orders) * config.max_passes
    return int(config.keep_ratio * captions)


def _scored_here(curator: Curator, tower: Tower) -> tuple[str, LaneScores | None]:
    """The encoder's fingerprint, and scores that this process computes during the scan."""
    encoder = TextEncoder.load(tower.text, device=tower.device, kept=curator.kept)
    return encoder.fingerprint, curator.lane_scores(encoder, curator.refresh(encoder))


def _journal_key(curator: Curator, encoder: str, device: str) -> dict[str, object]:
    """All that the scans of a cascade depend on."""
    return {
        "journal version": JOURNAL_VERSION,
        "pools": [(pool.name, str(pool.share), pool.pool.fingerprint) for pool in curator.pools],
        "encoder": encoder,
        "device": choose_device(device).type,
        "int8": has_int8(),  # two processors guess differently
        "metadata": curator.fingerprint,
        **asdict(curator.config),
    }


def _scored_ahead(
    curator: Curator, metadata: MetadataConfig, tower: Tower, staging: Path, mapped: Mapper
) -> tuple[str, LaneScores | None]:
    """The encoder's fingerprint, and scores that an engine writes to files ahead of the scan."""
    (embedded,) = mapped(embed_texts, [EmbedTask(tower, curator.prompts)])
    index = curator.refresh(PrecomputedEmbedder(curator.prompts, embedded))
    if index is None:
        return embedded.fingerprint, None
    source = ScoreSource(
        pools=pool_paths(curator.pools),
        config=curator.config,
        metadata=metadata,
        metadata_fingerprint=curator.fingerprint,
        tower=tower,
        index_kind=index.kind,  # so that `auto` means the same in every worker
        encoder=embedded.fingerprint,
    )
    return embedded.fingerprint, staged_scores(mapped, staging, source, index, curator.orders)


def _write(run: Run, curator: Curator, selections: Sequence[LaneSelection]) -> None:
    """Write the tables of a run's only outer step, and commit it."""
    curator.write_entries(run)
    files = []
    for selection in selections:
        scan = selection.scan
        run.log(metrics_record(scan))
        files += write_scan(run, scan, selection.rows)
        if rejects := scan.reject_rows():
            table = pa.Table.from_pylist(rejects, schema=SCHEMAS["rejects"])
            files.append(run.write_table("rejects", table, outer_step=0, lane=scan.lane))
    cursors = tuple(selection.scan.cursor for selection in selections)
    run.commit(Commit(outer_step=0, update=0, cursors=cursors, files=tuple(files)))
