"""The parts of a training run, built from its config, at its start or at its last commit."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cit_curate.curation.curator import Curator, vectors_beside
from cit_curate.errors import ConfigError
from cit_curate.pool.mixture import PoolMixture
from cit_curate.records import PoolCursor
from cit_curate.run.environment import cit_version, describe_environment
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.subset import subset_pool
from cit_curate.storage.vector_cache import VectorCache
from cit_train.config import RunConfig, flat
from cit_train.evaluation.evaluator import Evaluator
from cit_train.evaluation.pooled_images import open_kept_images
from cit_train.inner_loop.features import FeatureCache
from cit_train.inner_loop.trainer import Trainer, TrainState
from cit_train.loop.ahead import PrefetchScorer
from cit_train.loop.inputs import open_pools, open_selection
from cit_train.loop.recovery.changed_settings import adopt_settings
from cit_train.loop.recovery.checkpoint import (
    checkpoint_name,
    load_checkpoint,
    save_checkpoint,
    take_snapshot,
)
from cit_train.loop.recovery.mid_step import MidStep, read_mid_step
from cit_train.loop.recovery.roll_back import roll_back
from cit_train.loop.recovery.saver import Saver
from cit_train.loop.towers import AUTOCAST, Towers, open_towers
from cit_train.models.dual_encoder import make_processor
from cit_train.models.freeze import trains_vision_tower
from cit_train.models.pooled_vision import PooledVision
from cit_train.ranks.preflight import has_shared_memory
from cit_train.ranks.status import clear_status
from cit_train.ranks.stopping import StopSignals
from cit_train.ranks.world import World
from cit_train.streaming.batches import BatchReader, BatchReaderConfig
from cit_train.streaming.views import ViewMaker
from cit_train.transforms import Normalizer, image_statistics


@dataclass(frozen=True)
class Session:
    """The parts of a training run, and the state that training starts from."""

    config: RunConfig
    run: Run
    curator: Curator
    trainer: Trainer
    evaluator: Evaluator | None
    batches: BatchReader
    saver: Saver
    ahead: PrefetchScorer
    world: World
    state: TrainState
    mid_step: MidStep | None

    @property
    def class_notes(self) -> tuple[str, ...]:
        """The lines that say which classes were read, to curate for and to evaluate on."""
        lists = self.curator.classes
        notes = self.evaluator.images.notes if self.evaluator is not None else ()
        return (*(lists.lines if lists is not None else ()), *notes)

    @property
    def stop(self) -> StopSignals:
        """The stop signals that this rank has received."""
        return self.world.stop


@dataclass(frozen=True)
class _Opened:
    """The run, the pools that it trains on, and its last saved states."""

    run: Run
    pools: PoolMixture
    last: Commit | None
    mid_step: MidStep | None


def open_session(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    world: World | None = None,
) -> Session:
    """Start a run, or resume one at its last commit.

    With several ranks, rank 0 writes the files that all ranks share, and the others open them.

    Raises:
        ConfigError: The folder, a field, the pool, the metadata or a model cannot be used.
        DamagedError: A stored file does not match its manifest.
    """
    world = world or World(StopSignals())
    world.check_same("config", flat(config))  # before any input that a single rank may lack
    lanes = world.lanes(config.curate.lanes)
    pools = open_pools(config)
    selection = open_selection(config, out)  # before --overwrite removes anything
    if not resume and world.is_first:
        Run.check_free(out, overwrite=overwrite)
    evaluator = Evaluator.open(config.evaluate_as, config.text.max_text_length)
    if evaluator is not None and world.is_first:
        evaluator.announce()
    kept = vectors_beside(pools, config.text)  # of the whole pool, also for --max-sample
    curator = _open_curator(config, pools, out, world, kept)
    towers = open_towers(config, world)
    settings = _settings(config, curator, towers)
    world.check_same("settings", settings)
    run = None
    if world.is_first:
        allowed = allow_change if resume else None
        run = _open_run(out, settings, curator, allowed_changes=allowed, overwrite=overwrite)
    opened = _open_state(config, out, run, pools, selection, world)
    if opened.pools is not pools:
        curator = _open_curator(config, opened.pools, out, world, kept)
    views = _open_views(config, towers)
    vision = _open_vision(config, towers)
    trainer = _open_trainer(config, out, towers, vision, views, world=world)
    if config.curate.anchor and config.curate_as.curation != "none":
        curator.hold_to(trainer.text_encoder(kept))  # before a checkpoint is loaded
    if evaluator is not None and world.is_first and not trains_vision_tower(towers.model):
        # The method evaluates in float32.
        evaluator.vision = vision if vision.is_float32 else None
        evaluator.kept = open_kept_images(
            _feature_folder(config, out),
            towers.fingerprints["vision_fingerprint"],
            evaluator.vision.name if evaluator.vision is not None else towers.device.type,
            max_bytes=config.train.feature_cache_bytes,
        )
    state = _state_of(opened, curator, trainer)
    world.beat("starting", outer_step=state.outer_step, update=state.update)
    num_done = opened.mid_step.update - state.update if opened.mid_step else 0
    pins = towers.device.type == "cuda"
    reading = _reader_config(config, opened.run, views, lanes, pins=pins)
    return Session(
        config=config,
        run=opened.run,
        curator=curator,
        trainer=trainer,
        evaluator=evaluator,
        batches=BatchReader(
            reading, state.outer_step, first_batch=num_done * config.train.accumulate
        ),
        saver=_open_saver(config, opened.run, trainer, state, world),
        ahead=PrefetchScorer(config, opened.run, curator, towers.device),
        world=world,
        state=state,
        mid_step=opened.mid_step,
    )


def _open_curator(
    config: RunConfig, pools: PoolMixture, out: Path, world: World, kept: VectorCache | None
) -> Curator:
    """The metadata and the lane scans; only rank 0 stores the metadata index."""
    folder = out / "index" if world.is_first else None
    return Curator(pools, config.metadata, config.curate_as, index_folder=folder, kept=kept)


def _settings(config: RunConfig, curator: Curator, towers: Towers) -> dict[str, Any]:
    """The settings that config.json records."""
    return {
        **flat(config),
        **curator.pools.settings(),
        "metadata_fingerprint": curator.fingerprint,
        "precision": towers.precision,
        "vision_engine": towers.vision_engine,
        "cit_version": cit_version(),
        **towers.fingerprints,
    }


def _open_run(
    out: Path,
    settings: Mapping[str, Any],
    curator: Curator,
    *,
    allowed_changes: Sequence[str] | None,
    overwrite: bool,
) -> Run:
    """Open the existing run, if it may be resumed with these settings, or create a new one.

    Args:
        out: The run folder.
        settings: The settings for config.json.
        curator: Writes the metadata entries of the run.
        allowed_changes: Settings that may differ on resume; None: do not resume.
        overwrite: Replace an existing run by a new one.
    """
    if allowed_changes is not None and (out / "config.json").is_file():
        run = Run.open(out)
        changed = adopt_settings(run, settings, allowed_changes)
        if changed or not (out / "metadata.json").is_file():  # killed just before writing it
            curator.write_entries(run)
        return run
    environment = describe_environment()
    run = Run.create(out, config=settings, environment=environment, overwrite=overwrite)
    curator.write_entries(run)
    return run


def _open_state(
    config: RunConfig,
    out: Path,
    run: Run | None,
    pools: PoolMixture,
    selection: Run | None,
    world: World,
) -> _Opened:
    """Open the run on all ranks, after rank 0 has rolled it back to its last commit.

    `run` is the run on rank 0, which has opened it already, and None on the other ranks.
    """
    if run is not None:
        training_pools = _training_pools(pools, config, run, selection)
        last, mid_step = roll_back(run)
        clear_status(run.path)
    world.agree("seen the run opened", None)
    if run is None:
        run = Run.open(out)
        training_pools = _training_pools(pools, config, run, selection)
        commits = run.commits()
        last, mid_step = commits[-1] if commits else None, read_mid_step(run)
    world.run_folder = run.path
    return _Opened(run, training_pools, last, mid_step)


def _training_pools(
    pools: PoolMixture, config: RunConfig, run: Run, selection: Run | None
) -> PoolMixture:
    """The pools to train on: those of the config, or a subset of a single pool in RUN/pool.

    Raises:
        ConfigError: The selection is not a run of this pool; a new run is then removed again.
    """
    if pools.single is None or (selection is None and config.max_sample is None):
        return pools
    try:
        subset = subset_pool(
            pools.single, run.path / "pool", run=selection, max_images=config.max_sample
        )
    except ConfigError:
        if not run.commits():
            shutil.rmtree(run.path)
        raise
    return PoolMixture([(pools.pools[0].name, subset, Fraction(1))])


def _open_views(config: RunConfig, towers: Towers) -> ViewMaker:
    side = image_statistics(towers.model.config.vision_config).side
    return ViewMaker(side=side, max_pixels=config.train.max_pixels, fast=config.train.fast_views)


def _open_vision(config: RunConfig, towers: Towers) -> PooledVision:
    """The frozen part of the vision tower; cached features have their own engine and precision."""
    model, device = towers.model, towers.device
    model.to(device).vision_model.to(memory_format=torch.channels_last)
    statistics = image_statistics(model.config.vision_config)
    normalizer = Normalizer(statistics.mean, statistics.std)
    if config.train.vision_features == "live":
        autocast = AUTOCAST[towers.precision]
        vision = PooledVision(model.vision_model, normalizer, device, autocast=autocast)
        vision.limit_rows(config.curate.batch_size)
        return vision
    return PooledVision(
        model.vision_model,
        normalizer,
        device,
        autocast=AUTOCAST[config.train.vision_precision],
        engine=towers.vision_engine,
    )


def _open_trainer(
    config: RunConfig,
    out: Path,
    towers: Towers,
    vision: PooledVision,
    views: ViewMaker,
    *,
    world: World,
) -> Trainer:
    cache = None
    if config.train.vision_features == "cached":
        cache = FeatureCache(
            _feature_folder(config, out),
            vision,
            views,
            fingerprint=towers.fingerprints["vision_fingerprint"],
            num_views=config.train.cached_views,
            max_bytes=config.train.feature_cache_bytes,
            num_threads=os.cpu_count() or 1,
        )
    statistics = image_statistics(towers.model.config.vision_config)
    processor = make_processor(
        towers.tokenizer, statistics, max_text_length=config.text.max_text_length
    )
    return Trainer(
        config,
        towers.model,
        towers.tokenizer,
        processor,
        vision,
        cache,
        world=world,
        autocast=AUTOCAST[towers.precision],
    )


def _feature_folder(config: RunConfig, out: Path) -> Path:
    """The folder of the cached vision features."""
    return Path(config.train.feature_cache) if config.train.feature_cache else out / "features"


def _state_of(opened: _Opened, curator: Curator, trainer: Trainer) -> TrainState:
    """The state after the last commit; loads its weights into the trainer."""
    last = opened.last
    if last is None or last.checkpoint is None:
        return TrainState(0, 0, (PoolCursor(),) * len(curator.orders))
    load_checkpoint(opened.run.path / last.checkpoint, trainer)
    best = dict(last.best) if last.best else None
    cursors = tuple(
        # A pool that has shrunk (--allow-change) may end before this position.
        cursor if cursor.position <= order.length else PoolCursor(cursor.pass_index + 1, 0)
        for cursor, order in zip(last.cursors, curator.orders, strict=True)
    )
    return TrainState(last.update, last.outer_step + 1, cursors, best)


def _open_saver(
    config: RunConfig, run: Run, trainer: Trainer, state: TrainState, world: World
) -> Saver:
    saver = Saver(config.train)
    if config.train.ahead and world.is_first and not state.outer_step:
        # The second outer step is selected with the initial weights, which no commit saves.
        snapshot = take_snapshot(trainer)
        saver.submit(partial(save_checkpoint, run.path / checkpoint_name(0), snapshot))
    return saver


def _reader_config(
    config: RunConfig, run: Run, views: ViewMaker, lanes: Sequence[int], *, pins: bool
) -> BatchReaderConfig:
    return BatchReaderConfig(
        folder=run.path / "shards",
        batch_size=config.curate.batch_size,
        pairs_per_shard=config.train.pairs_per_shard,
        lanes=lanes,
        seed=config.curate.seed,
        augments_tags=config.curate.augments_tags,
        views=views,
        with_views=config.train.vision_features == "live",
        wait_seconds=config.train.stream_seconds,
        shares_memory=has_shared_memory(config, side=views.side),
        pins=pins,
    )
