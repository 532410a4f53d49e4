"""Updates/s of training, each of the ways that make it faster added to the one before.

    python -m scripts.bench.train_step [--out FOLDER] [--num-updates 6] [--json FILE]
    python -m scripts.bench.train_step --device cuda --drawn

The demo's towers on its own pairs (`cit demo --fetch-only`): MiniLM and EfficientNet-lite0, batches
of 64. The plain step decodes, crops and runs both towers at every update, captions padded to 32.
With `--drawn` the pairs are drawn pictures, and nothing is fetched.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cit_train.config import RunConfig, replace_fields
from cit_train.inner_loop.trainer import Trainer, TrainState
from cit_train.loop.session import open_session
from cit_train.streaming.batches import LaneBatch
from cit_train.streaming.views import ViewMaker, empty_views
from scripts.bench.drawn_pool import drawn_config
from scripts.bench.plain_loop import Pair, PlainLoop, columns
from scripts.bench.side_by_side import Comparison, add_device, bench_parser, compare_ways, show

WAYS: dict[str, dict[str, Any]] = {
    "cit, live": {"vision_features": "live"},
    "cit, cached": {"vision_features": "cached"},
    "+ --fused-adamw": {"vision_features": "cached", "fused_adamw": True},
    "+ --text-buckets 4": {"vision_features": "cached", "fused_adamw": True, "text_buckets": 4},
}


def main() -> None:
    """Print the table."""
    parser = bench_parser(__doc__)
    parser.add_argument("--out", type=Path, help="folder for the demo's pool, kept for next time")
    parser.add_argument("--num-updates", type=int, default=6, help="updates of one repeat")
    parser.add_argument("--drawn", action="store_true", help="drawn pictures: fetch nothing")
    parser.add_argument("--batch-size", type=int, default=64)
    add_device(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out, runs = options.out or Path(temporary), Path(temporary) / "runs"
        config = drawn_config(out / "drawn", 1_024) if options.drawn else demo_config(out)
        config = replace_fields(config, device=options.device, batch_size=options.batch_size)
        show([compare(config, runs, options.num_updates, options.repeats)], options.json)


def demo_config(out: Path) -> RunConfig:
    """The demo's curated run, its pool and pictures below a folder."""
    from cit_curate.storage.cache_folder import cache_folder
    from cit_train.demo.assets import DEBIAN_ASSETS, fetch_deb
    from cit_train.demo.command import prepare

    folders = {name: fetch_deb(name, cache_folder(), print) for name in DEBIAN_ASSETS}
    return prepare(out, folders, print)


def compare(config: RunConfig, folder: Path, num_updates: int, repeats: int) -> Comparison:
    """The plain step, and the ways of cit, each with a model of its own."""
    folder.mkdir()
    plain, size = PlainLoop(config, folder), config.curate.batch_size
    pairs: list[Pair] = []
    while len(pairs) < num_updates * size:
        pairs += plain.pairs(curated=False)
    groups = [pairs[number * size : (number + 1) * size] for number in range(num_updates)]
    stages = {"plain step": watched(plain.model, plain.optimizer)}
    ways: dict[str, Callable[[], object]] = {"plain step": partial(plain_updates, plain, groups)}
    for number, (name, fields) in enumerate(WAYS.items()):
        changed = replace_fields(config, **fields, feature_cache=str(folder / "features"))
        trainer = open_session(changed, folder / f"run{number}").trainer
        stages[name] = watched(trainer.model, trainer.optimizer)
        is_live = changed.train.vision_features == "live"
        views = ViewMaker(side=224, max_pixels=changed.train.max_pixels) if is_live else None
        ways[name] = partial(cit_updates, trainer, views, groups)
    for name, way in ways.items():  # fills the feature caches, too
        way()
        stages[name].update(dict.fromkeys(stages[name], 0.0))
    each_update = 1e3 / (len(groups) * repeats)
    return compare_ways(
        "Training step",
        "updates",
        ways,
        len(groups),
        repeats=repeats,
        warm_up=False,
        notes=lambda name: {
            f"{stage} ms": f"{total * each_update:.0f}"
            for stage, total in stages[name].items()
            if config.train.device == "cpu"  # a GPU still computes when a tower has returned
        },
        facts={"pairs an update": size, "updates a repeat": len(groups)},
    )


def cit_updates(
    trainer: Trainer, views: ViewMaker | None, groups: Sequence[Sequence[Pair]]
) -> None:
    """Each group is one update of cit's trainer, the making of views included."""
    state = TrainState(1, 0, ())  # the first update has rate 0
    for number, group in enumerate(groups):
        captions, images = columns(group)
        keys = [f"{number}_title"] * len(group)
        batch = LaneBatch(0, 0, number * len(group), captions, keys, images, None)
        if views is not None:
            room = empty_views(len(group), views.side)
            for image, view in zip(images, room, strict=True):
                views(image, [np.random.default_rng(number)], view[None])
            batch = replace(batch, views=room)
        trainer.step([batch], state)


def plain_updates(plain: PlainLoop, groups: Sequence[Sequence[Pair]]) -> None:
    """The same updates by the plain loop."""
    for group in groups:
        plain.step(*columns(group), 1)


def watched(model: Any, optimizer: Any) -> dict[str, float]:
    """Seconds that both towers' forward passes and the optimizer take from now on, by name."""
    seconds: dict[str, float] = {}
    started: dict[str, float] = {}

    def watch(stage: str, before: Callable[..., object], after: Callable[..., object]) -> None:
        def start(*_: object) -> None:
            started[stage] = time.perf_counter()

        def end(*_: object) -> None:
            seconds[stage] += time.perf_counter() - started[stage]

        seconds[stage] = 0.0
        before(start)
        after(end)

    for stage, tower in (("vision", model.vision_model), ("text", model.text_model)):
        watch(stage, tower.register_forward_pre_hook, tower.register_forward_hook)
    watch("optimizer", optimizer.register_step_pre_hook, optimizer.register_step_post_hook)
    return seconds


if __name__ == "__main__":
    main()
