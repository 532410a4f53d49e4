"""What a training run consists of, put together from its config, fresh or from the last commit."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    ProcessorMixin,
    VisionTextDualEncoderModel,
)

from cit_curate.curation import Curator
from cit_curate.environment import describe_environment
from cit_curate.errors import ConfigError
from cit_curate.ledger import Run
from cit_curate.pool.pool import Pool
from cit_curate.pool.subset import subset_pool
from cit_curate.records import PoolCursor
from cit_curate.text_encoder import choose_device, load_text_tower, weights_sha256
from cit_train.batches import BatchStream, StreamConfig
from cit_train.checkpoint import checkpoints_except, load_checkpoint, point_to
from cit_train.config import RunConfig, flat
from cit_train.evaluation.evaluator import Evaluator
from cit_train.features import FeatureCache
from cit_train.models.dual_encoder import build_dual_encoder, make_processor
from cit_train.models.freeze import freeze
from cit_train.models.load import is_foreign, load_dual_encoder
from cit_train.models.towers import load_vision_tower
from cit_train.pooled_vision import PooledVision
from cit_train.trainer import Trainer, TrainState
from cit_train.transforms import Normalizer, image_statistics


@dataclass(frozen=True)
class Session:
    """The parts of a training run, and where it stands."""

    config: RunConfig
    run: Run
    pool: Pool
    curator: Curator
    trainer: Trainer
    processor: ProcessorMixin
    evaluator: Evaluator | None
    batches: BatchStream
    state: TrainState
    best: dict[str, Any] | None


def open_session(
    config: RunConfig, out: Path, *, resume: bool = False, overwrite: bool = False
) -> Session:
    """Start a run, or take up one at its last commit.

    Raises:
        ConfigError: The folder, a field, the pool, the metadata or a model is not as it must be.
        DamagedError: What was stored does not match its manifest.
    """
    whole = _open_pool(config)
    selection = _open_selection(config, out)  # before --overwrite removes anything
    if not resume:
        Run.check_free(out, overwrite=overwrite)
    curator = Curator(whole, config.metadata, config.curate_as, index_folder=out / "index")
    evaluator = Evaluator.open(config.evaluate_as, config.text.max_text_length)
    model, tokenizer, fingerprints = _build_model(config)
    freeze(model, config.model)
    device = choose_device(config.train.device)
    mixed = config.train.precision == "float16" or (
        config.train.precision == "auto" and device.type == "cuda"
    )
    settings = {
        **flat(config),
        "pool": str(whole.path.resolve()),
        "pool_fingerprint": whole.fingerprint,
        "metadata_fingerprint": curator.fingerprint,
        "precision": "float16" if mixed else "float32",
        **fingerprints,
    }
    run = _open_run(out, settings, curator, resume=resume, overwrite=overwrite)
    pool = _narrowed(whole, config, run, selection)
    if pool is not whole:
        curator = Curator(pool, config.metadata, config.curate_as, index_folder=out / "index")
    statistics = image_statistics(model.config.vision_config)
    normalizer = Normalizer(statistics.mean, statistics.std)
    model.to(device).vision_model.to(memory_format=torch.channels_last)
    is_cached = config.train.vision_features == "cached"
    vision = PooledVision(model.vision_model, normalizer, device, mixed=mixed and not is_cached)
    cache = None
    if is_cached:
        folder = config.train.feature_cache
        cache = FeatureCache(
            Path(folder) if folder else out / "features",
            vision,
            fingerprint=fingerprints["vision_fingerprint"],
            num_views=config.train.cached_views,
            side=statistics.side,
            max_pixels=config.train.max_pixels,
            num_threads=os.cpu_count() or 1,
        )
    trainer = Trainer(config, model, tokenizer, vision, cache, mixed=mixed)
    processor = make_processor(tokenizer, statistics, max_text_length=config.text.max_text_length)
    state, best = _go_on(run, config, trainer)
    batches = BatchStream(_stream_config(config, run, statistics.side), state.outer_step)
    return Session(config, run, pool, curator, trainer, processor, evaluator, batches, state, best)


def _open_pool(config: RunConfig) -> Pool:
    """The pool that the config names, once it has images."""
    if not config.pool:
        raise ConfigError("--pool is missing: give a folder made by `cit pool build`")
    pool = Pool.open(config.pool)
    if not pool.has_images:
        raise ConfigError(
            f"{config.pool} names no images, and training needs them; "
            "curate without training with `cit curate`, or build the pool with --image COLUMN"
        )
    return pool


def _open_selection(config: RunConfig, out: Path) -> Run | None:
    """The run whose selected pairs are trained on; None = curate.

    Raises:
        ConfigError: It is no run, has selected nothing, or is the run that is about to be written.
    """
    if not config.selection:
        return None
    selection = Run.open(Path(config.selection))
    if selection.path.resolve() == out.resolve():
        raise ConfigError(
            f"--selection and --out are both {config.selection}; what is trained on it needs a "
            "folder of its own: give another --out"
        )
    if not selection.commits():
        raise ConfigError(
            f"--selection: {config.selection} has no committed outer step, so it has selected "
            "nothing yet"
        )
    return selection


def _open_run(
    out: Path, settings: Mapping[str, Any], curator: Curator, *, resume: bool, overwrite: bool
) -> Run:
    """The run that is there, once it has the same settings, or a new one."""
    if resume and (out / "config.json").is_file():
        run = Run.open(out)
        _check_same(run, settings)
        return run
    environment = describe_environment()
    run = Run.create(out, config=settings, environment=environment, overwrite=overwrite)
    curator.write_entries(run)
    return run


def _narrowed(pool: Pool, config: RunConfig, run: Run, selection: Run | None) -> Pool:
    """What is trained on: the whole pool, or a copy of its captions in RUN/pool with some pairs.

    Raises:
        ConfigError: The selection is no run of this pool; a new run is then removed again.
    """
    if selection is None and config.max_sample is None:
        return pool
    try:
        return subset_pool(pool, run.path / "pool", run=selection, max_images=config.max_sample)
    except ConfigError:
        if not run.commits():
            shutil.rmtree(run.path)
        raise


def _stream_config(config: RunConfig, run: Run, side: int) -> StreamConfig:
    return StreamConfig(
        folder=run.path / "shards",
        batch_size=config.curate.batch_size,
        lanes=config.curate.lanes,
        seed=config.curate.seed,
        augments_tags=config.curate.augments_tags,
        side=side,
        max_pixels=config.train.max_pixels,
        with_views=config.train.vision_features == "live",
        wait_seconds=config.train.stream_seconds,
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


def _go_on(
    run: Run, config: RunConfig, trainer: Trainer
) -> tuple[TrainState, dict[str, Any] | None]:
    """Put the last commit's state into the trainer; what is younger than it is removed."""
    last = run.roll_back()
    if last is None or last.checkpoint is None:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
        return TrainState(0, 0, (PoolCursor(),) * config.curate.lanes), None
    load_checkpoint(run.path / last.checkpoint, trainer)
    for path in checkpoints_except(run.path, []):
        if int(path.name.removeprefix("update-")) > last.update:
            shutil.rmtree(path)
    point_to(run.path, "last", last.checkpoint)
    best = dict(last.best) if last.best else None
    if best:
        point_to(run.path, "best", best["checkpoint"])
    return TrainState(last.update, last.outer_step + 1, last.cursors), best


# What may differ when a run is taken up again: it changes where and how fast, never what.
_FREE_TO_CHANGE = frozenset(
    {"num_workers", "keep_shards", "stream_seconds", "feature_cache", "device", "tensorboard"}
)


def _check_same(run: Run, settings: Mapping[str, Any]) -> None:
    old = run.config
    changed = [
        f"{name}: {old.get(name)!r} then, {settings.get(name)!r} now"
        for name in sorted(old.keys() | settings.keys())
        if old.get(name) != settings.get(name) and name not in _FREE_TO_CHANGE
    ]
    if changed:
        raise ConfigError(
            f"{run.path} was started with other settings, so --resume would not go on with the "
            f"same run. {'; '.join(changed)}. Give the same flags, or another --out"
        )
