"""What a training run consists of, put together from its config, fresh or from the last commit."""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    ProcessorMixin,
    VisionTextDualEncoderModel,
)

from cit_curate.curation.curator import Curator
from cit_curate.errors import ConfigError
from cit_curate.pool.mixture import PoolMixture
from cit_curate.records import PoolCursor
from cit_curate.run.environment import cit_version, describe_environment
from cit_curate.run.ledger import Commit, Run
from cit_curate.run.subset import subset_pool
from cit_curate.storage.durable import remove_folder
from cit_curate.text_encoder.encoder import choose_device, load_text_tower, weights_sha256
from cit_train.config import RunConfig, flat
from cit_train.evaluation.evaluator import Evaluator
from cit_train.inner_loop.features import FeatureCache
from cit_train.inner_loop.trainer import Trainer, TrainState
from cit_train.loop.ahead import PrefetchScorer
from cit_train.loop.inputs import open_pools, open_selection
from cit_train.loop.recovery.changed_settings import take_over_settings
from cit_train.loop.recovery.checkpoint import (
    checkpoint_name,
    checkpoints_except,
    load_checkpoint,
    point_to,
    save_checkpoint,
    take_snapshot,
)
from cit_train.loop.recovery.mid_step import MidStep, read_mid_step, remove_mid_step
from cit_train.loop.recovery.saver import Saver
from cit_train.loop.recovery.set_back import set_back, whole_checkpoints
from cit_train.models.dual_encoder import build_dual_encoder, make_processor
from cit_train.models.freeze import freeze
from cit_train.models.load import is_foreign, load_dual_encoder
from cit_train.models.pooled_vision import PooledVision
from cit_train.models.towers import load_vision_tower
from cit_train.ranks.preflight import has_shared_memory
from cit_train.ranks.status import clear_status
from cit_train.ranks.stopping import StopSignals
from cit_train.ranks.world import World
from cit_train.streaming.batches import BatchStream, StreamConfig
from cit_train.streaming.views import ViewMaker
from cit_train.transforms import Normalizer, image_statistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """The parts of a training run, and where it stands."""

    config: RunConfig
    run: Run
    pools: PoolMixture
    curator: Curator
    trainer: Trainer
    processor: ProcessorMixin
    evaluator: Evaluator | None
    batches: BatchStream
    saver: Saver
    ahead: PrefetchScorer
    world: World
    state: TrainState
    mid_step: MidStep | None

    @property
    def stop(self) -> StopSignals:
        """The signals that this rank has heard."""
        return self.world.stop


def open_session(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    world: World | None = None,
) -> Session:
    """Start a run, or take up one at its last commit.

    With several ranks, rank 0 writes what is there once, and the others open it.

    Raises:
        ConfigError: The folder, a field, the pool, the metadata or a model is not as it must be.
        DamagedError: What was stored does not match its manifest.
    """
    world = world or World(StopSignals())
    world.check_same("config", flat(config))  # before anything that only one of them lacks
    lanes = world.lanes(config.curate.lanes)
    whole = open_pools(config)
    selection = open_selection(config, out)  # before --overwrite removes anything
    if not resume and world.is_first:
        Run.check_free(out, overwrite=overwrite)
    index_folder = out / "index" if world.is_first else None
    curator = Curator(whole, config.metadata, config.curate_as, index_folder=index_folder)
    evaluator = Evaluator.open(config.evaluate_as, config.text.max_text_length)
    model, tokenizer, fingerprints = _build_model(config)
    freeze(model, config.model)
    device = _own_device(config.train.device, world)
    precision = _precision(config, device)
    settings = {
        **flat(config),
        **whole.settings(),
        "metadata_fingerprint": curator.fingerprint,
        "precision": precision,
        "cit_version": cit_version(),
        **fingerprints,
    }
    world.check_same("settings", settings)
    if world.is_first:
        allowed = allow_change if resume else None
        run = _open_run(out, settings, curator, allowed_changes=allowed, overwrite=overwrite)
        pools = _narrowed(whole, config, run, selection)
        last, mid_step = _roll_back(run)
        clear_status(run.path)
    world.agree("seen the run opened", None)
    if not world.is_first:
        run = Run.open(out)
        pools = _narrowed(whole, config, run, selection)
        last, mid_step = _last_commit(run), read_mid_step(run)
    world.run_folder = run.path
    if pools is not whole:
        curator = Curator(pools, config.metadata, config.curate_as, index_folder=index_folder)
    statistics = image_statistics(model.config.vision_config)
    model.to(device).vision_model.to(memory_format=torch.channels_last)
    autocast = _AUTOCAST[precision]
    views = ViewMaker(
        side=statistics.side, max_pixels=config.train.max_pixels, fast=config.train.fast_views
    )
    vision, cache = _open_vision(
        config, out, model, views, device, autocast, fingerprints["vision_fingerprint"]
    )
    trainer = Trainer(config, model, tokenizer, vision, cache, world=world, autocast=autocast)
    state = _state_of(run, curator, trainer, last)
    world.beat("starting", outer_step=state.outer_step, update=state.update)
    processor = make_processor(tokenizer, statistics, max_text_length=config.text.max_text_length)
    saver = Saver(config.train)
    if config.train.ahead and world.is_first and not state.outer_step:
        # The outer step after the first one is selected with these weights; nobody else has them.
        start = take_snapshot(trainer, processor)
        saver.submit(partial(save_checkpoint, run.path / checkpoint_name(0), start))
    done = (mid_step.update - state.update) * config.train.accumulate if mid_step else 0
    stream = _stream_config(config, run, views, lanes)
    return Session(
        config=config,
        run=run,
        pools=pools,
        curator=curator,
        trainer=trainer,
        processor=processor,
        evaluator=evaluator,
        batches=BatchStream(stream, state.outer_step, first_batch=done),
        saver=saver,
        ahead=PrefetchScorer(config, run, curator, device),
        world=world,
        state=state,
        mid_step=mid_step,
    )


_AUTOCAST = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _precision(config: RunConfig, device: torch.device) -> str:
    if config.train.precision != "auto":
        return config.train.precision
    return "float16" if device.type == "cuda" else "float32"


def _open_vision(
    config: RunConfig,
    out: Path,
    model: VisionTextDualEncoderModel,
    views: ViewMaker,
    device: torch.device,
    autocast: torch.dtype | None,
    fingerprint: str,
) -> tuple[PooledVision, FeatureCache | None]:
    """The frozen part of the vision tower, and its cache when the config has one."""
    statistics = image_statistics(model.config.vision_config)
    normalizer = Normalizer(statistics.mean, statistics.std)
    train = config.train
    if train.vision_features != "cached":
        return PooledVision(model.vision_model, normalizer, device, autocast=autocast), None
    vision = PooledVision(model.vision_model, normalizer, device)  # kept: in full precision
    cache = FeatureCache(
        Path(train.feature_cache) if train.feature_cache else out / "features",
        vision,
        views,
        fingerprint=fingerprint,
        num_views=train.cached_views,
        max_bytes=train.feature_cache_bytes,
        num_threads=os.cpu_count() or 1,
    )
    return vision, cache


def _open_run(
    out: Path,
    settings: Mapping[str, Any],
    curator: Curator,
    *,
    allowed_changes: Sequence[str] | None,
    overwrite: bool,
) -> Run:
    """The run that is there, once it may go on with these settings, or a new one.

    Args:
        out: Its folder.
        settings: What config.json is to say.
        curator: Has the metadata.
        allowed_changes: Settings that may differ when it goes on; None: do not go on.
        overwrite: Replace what is there by a new one.
    """
    if allowed_changes is not None and (out / "config.json").is_file():
        run = Run.open(out)
        changed = take_over_settings(run, settings, allowed_changes)
        if changed or not (out / "metadata.json").is_file():  # it was killed just before
            curator.write_entries(run)
        return run
    environment = describe_environment()
    run = Run.create(out, config=settings, environment=environment, overwrite=overwrite)
    curator.write_entries(run)
    return run


def _narrowed(
    pools: PoolMixture, config: RunConfig, run: Run, selection: Run | None
) -> PoolMixture:
    """What is trained on: the pools, or a copy of its captions in RUN/pool with some pairs.

    Raises:
        ConfigError: The selection is no run of this pool; a new run is then removed again.
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


def _own_device(name: str, world: World) -> torch.device:
    """The device of this rank: with several ranks on a machine, each has a GPU of its own."""
    device = choose_device(name)
    if device.type == "cuda" and world.size > 1:
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    return device


def _stream_config(
    config: RunConfig, run: Run, views: ViewMaker, lanes: Sequence[int]
) -> StreamConfig:
    return StreamConfig(
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
    )


def _build_model(
    config: RunConfig,
) -> tuple[VisionTextDualEncoderModel, PreTrainedTokenizerBase, dict[str, str]]:
    """The dual encoder before training, its tokenizer, and the fingerprints of its towers."""
    if config.model.init_from:
        start = Path(config.model.init_from)
        # The original's checkpoints have no tokenizer: theirs is the text tower's.
        other = config.text.text_encoder if is_foreign(start) else None
        model, tokenizer = load_dual_encoder(start, tokenizer=other)
    else:
        text, tokenizer = load_text_tower(config.text)
        tower = load_vision_tower(config.model.vision_encoder)
        model = build_dual_encoder(
            tower, text, projection_dim=config.model.projection_dim, seed=config.curate.seed
        )
    # A feature depends on how pixels are normalised, too, which no weight shows.
    statistics = repr(image_statistics(model.config.vision_config))
    vision = f"{weights_sha256(model.vision_model)} {statistics}"
    fingerprints = {
        "text_fingerprint": weights_sha256(model.text_model),
        "vision_fingerprint": hashlib.sha256(vision.encode()).hexdigest(),
    }
    return model, tokenizer, fingerprints


def _roll_back(run: Run) -> tuple[Commit | None, MidStep | None]:
    """The last commit, and the place after it that was saved; what is younger is removed.

    A run whose last checkpoint is damaged goes on from the one before.
    """
    commits = run.commits()
    kept = commits[: whole_checkpoints(run, commits)]
    if kept and len(kept) < len(commits):
        logger.warning(
            "going on after outer step %d instead; what came after it is in %s",
            *(kept[-1].outer_step, run.path / "damaged"),
        )
        set_back(run, kept)
    mid_step = read_mid_step(run)
    last = run.roll_back(keep_update=mid_step.update if mid_step else None)
    if mid_step is None:
        remove_mid_step(run)
    update = mid_step.update if mid_step else last.update if last else -1
    for path in checkpoints_except(run.path, []):
        if int(path.name.removeprefix("update-")) > update:
            remove_folder(path)
    if last is not None and last.checkpoint is not None:
        point_to(run.path, "last", last.checkpoint)
        if last.best:
            point_to(run.path, "best", last.best["checkpoint"])
    return last, mid_step


def _last_commit(run: Run) -> Commit | None:
    commits = run.commits()
    return commits[-1] if commits else None


def _state_of(run: Run, curator: Curator, trainer: Trainer, last: Commit | None) -> TrainState:
    """Where the run stands after its last commit, whose weights the trainer then has."""
    if last is None or last.checkpoint is None:
        return TrainState(0, 0, (PoolCursor(),) * len(curator.orders))
    load_checkpoint(run.path / last.checkpoint, trainer)
    best = dict(last.best) if last.best else None
    cursors = tuple(
        # A pool that has become smaller (--allow-change) may end before this place.
        cursor if cursor.position <= order.length else PoolCursor(cursor.pass_index + 1, 0)
        for cursor, order in zip(last.cursors, curator.orders, strict=True)
    )
    return TrainState(last.update, last.outer_step + 1, cursors, best)
