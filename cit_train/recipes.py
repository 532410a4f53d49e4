"""Recipes: functions that return the config of a run, with its command and measured number."""

from collections.abc import Callable, Mapping

from cit_train.config import EvalConfig, RunConfig, replace_fields


def default() -> RunConfig:
    """CiT's own settings (arXiv 2301.02241), for your own pool and class names.

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
        fused_adamw=True,
        text_buckets=4,
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
    Zero-shot mean per class 48.9 ± 1.6 % (chance 4.5), 2026-12-01, 2 cores; without fused AdamW and
    text buckets 49.0 ± 1.9 % (uncurated 27.2 ± 1.4).
    """
    return replace_fields(laptop(), max_updates=50, eval_every=10, prompts=("{}",))


def yfcc15m_in1k_mocob16() -> RunConfig:
    """The paper's main run: YFCC15M for ImageNet's classes, frozen MoCo-v3 ViT-B/16, SimCSE BERT.

    cit train yfcc15m_in1k_mocob16 --pool pools/yfcc15m --eval-data eval_data
    """
    return replace_fields(
        default(),
        pool="pools/yfcc15m",
        metadata="imagenet",
        vision_encoder="models/moco-v3-vit-b16",
        eval_task="imagenet",
        eval_data="eval_data",
        extra_prompts=True,
        lanes=16,
    )


def yfcc100m_in1k_mocob16() -> RunConfig:
    """The same on all of YFCC100M: a higher threshold, and pairs may repeat.

    cit train yfcc100m_in1k_mocob16 --pool pools/yfcc100m --eval-data eval_data
    """
    return replace_fields(
        yfcc15m_in1k_mocob16(),
        pool="pools/yfcc100m",
        threshold=0.7,
        min_ratio=0.01,
        collection="multiset",
    )


def eval_yfcc15m_in1k_mocob16() -> EvalConfig:
    """All 26 tasks, with the best checkpoint of the paper's main run.

    cit eval eval_yfcc15m_in1k_mocob16 --data eval_data
    """
    return EvalConfig(model="runs/yfcc15m_in1k_mocob16", tasks="all")


RECIPES: Mapping[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        default,
        laptop,
        clipart_demo,
        yfcc15m_in1k_mocob16,
        yfcc100m_in1k_mocob16,
    )
}

EVAL_RECIPES: Mapping[str, Callable[[], EvalConfig]] = {
    recipe.__name__: recipe for recipe in (eval_yfcc15m_in1k_mocob16,)
}


def recipe_help(docs: Mapping[str, str]) -> list[str]:
    """The help lines of recipes: the name and first line of each, then its command."""
    width = max(map(len, docs), default=0)
    lines = []
    for name, doc in docs.items():
        first, _, rest = doc.strip().partition("\n")
        stripped = (line.strip() for line in rest.splitlines())
        command = next((line for line in stripped if line.startswith("cit ")), "")
        lines += [f"  {name:<{width}}  {first}", f"  {'':<{width}}  {command}"]
    return lines
