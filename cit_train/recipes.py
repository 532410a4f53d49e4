"""Recipes: functions that return a run's config; each carries its command and its number."""

from collections.abc import Callable, Mapping

from cit_train.config import RunConfig, replace_fields


def default() -> RunConfig:
    """CiT's own settings (CIT.md), for a pool and class names of one's own.

    cit train default --pool POOL --metadata classes.txt --out RUN
    """
    return RunConfig()


def laptop() -> RunConfig:
    """Small towers from installed packages and cached image features: a CPU is enough.

    cit train laptop --pool POOL --metadata classes.txt --out RUN
    """
    return replace_fields(
        default(),
        text_encoder="package:minilm",
        pooling="mean",
        vision_encoder="package:efficientnet-lite0",
        vision_features="cached",
        cached_views=2,
        pairs_per_shard=128,
        threshold=0.45,
        min_ratio=0.05,
        batch_size=64,
        curate_every=10,
        max_passes=2,
        max_updates=200,
        eval_every=50,
        lr=1e-3,
        text_lr=5e-5,
    )


def clipart_demo() -> RunConfig:
    """Clip art for 22 classes, evaluated on Tux Paint's pictures; `cit demo` fetches both.

    cit demo --seeds 0,1,2
    Zero-shot mean per class 49.0 ± 1.9 % (uncurated 27.2 ± 1.4, chance 4.5), 2026-11-24, 2 cores.
    """
    return replace_fields(laptop(), max_updates=50, eval_every=10, prompts=("{}",))


RECIPES: Mapping[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe for recipe in (default, laptop, clipart_demo)
}
