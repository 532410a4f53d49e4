"""Updates/s of training, each of the ways that make it faster added to the one before.

    python -m scripts.bench.train_step [--out FOLDER] [--num-updates 6] [--json FILE]

The demo's towers on its own pairs (`cit demo --fetch-only`): MiniLM and EfficientNet-lite0, batches
of 64. The plain step decodes, crops and runs both towers at every update, captions padded to 32.
"""

import argparse
import csv
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cit_curate.images.read import ImageRejected, check_image
from cit_train.config import RunConfig, replace_fields
from cit_train.inner_loop.trainer import Trainer, TrainState
from cit_train.loop.session import open_session
from cit_train.streaming.batches import LaneBatch
from cit_train.streaming.views import ViewMaker, empty_views
from scripts.bench.plain_loop import PlainLoop
from scripts.bench.side_by_side import Comparison, Timing, add_output, show, take_turns

WAYS: dict[str, dict[str, Any]] = {
    "cit, live": {"vision_features": "live"},
    "cit, cached": {"vision_features": "cached"},
    "+ --fused-adamw": {"vision_features": "cached", "fused_adamw": True},
    "+ --text-buckets 4": {"vision_features": "cached", "fused_adamw": True, "text_buckets": 4},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the demo's pool, kept for next time")
    parser.add_argument("--num-updates", type=int, default=6, help="updates of one repeat")
    add_output(parser)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        config = demo_config(asked.out or Path(temporary))
        pairs = read_pairs(config, asked.num_updates * config.curate.batch_size)
        show([compare(config, pairs, Path(temporary) / "runs", asked.repeats)], asked.json)


def demo_config(out: Path) -> RunConfig:
    """The demo's curated run, its pool and pictures below a folder."""
    from cit_curate.storage.cache_folder import cache_folder
    from cit_train.demo.assets import DEBIAN_ASSETS, fetch_deb
    from cit_train.demo.command import prepare

    folders = {name: fetch_deb(name, cache_folder(), print) for name in DEBIAN_ASSETS}
    return prepare(out, folders, print)


def read_pairs(config: RunConfig, num_pairs: int) -> list[tuple[str, bytes]]:
    """Captions and images of the demo's table: title, description and keywords in turn."""
    from cit_curate.storage.cache_folder import cache_folder
    from cit_train.demo.assets import fetch_deb

    root = fetch_deb("openclipart-png", cache_folder(), print)
    with (Path(str(config.pool)).parent / "clipart.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    pairs: list[tuple[str, bytes]] = []
    for number, place in enumerate(np.random.default_rng(0).permutation(len(rows))):
        caption = rows[place][("title", "desc", "tag")[number % 3]]
        image = (root / rows[place]["image"]).read_bytes()
        try:
            check_image(image)
        except ImageRejected:
            continue
        if caption:
            pairs.append((caption, image))
        if len(pairs) == num_pairs:
            break
    return pairs


def compare(
    config: RunConfig, pairs: Sequence[tuple[str, bytes]], folder: Path, repeats: int
) -> Comparison:
    """The plain step, and the ways of cit, each with a model of its own."""
    folder.mkdir()
    size = config.curate.batch_size
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    plain = PlainLoop(config, folder)
    stages = {"plain step": watched(plain.model, plain.optimizer)}
    ways: dict[str, Callable[[], object]] = {"plain step": lambda: plain_updates(plain, groups)}
    for number, (name, fields) in enumerate(WAYS.items()):
        changed = replace_fields(config, **fields, feature_cache=str(folder / "features"))
        trainer = open_session(changed, folder / f"run{number}").trainer
        stages[name] = watched(trainer.model, trainer.optimizer)
        updates = Updates(changed, trainer, groups)
        ways[name] = updates
    for name, way in ways.items():  # fills the feature caches, too
        way()
        stages[name].update(dict.fromkeys(stages[name], 0.0))
    seconds = take_turns(ways, repeats=repeats, warm_up=False)
    num_updates = len(groups) * repeats
    timings = [
        Timing(
            name,
            times,
            len(groups),
            {f"{stage} ms": f"{1e3 * total / num_updates:.0f}" for stage, total in
             stages[name].items()},
        )
        for name, times in seconds.items()
    ]  # fmt: skip
    facts = {"pairs an update": size, "updates a repeat": len(groups)}
    return Comparison("Training step", "updates", "plain step", tuple(timings), facts)


class Updates:
    """Some updates of cit's trainer, the making of views included."""

    def __init__(
        self, config: RunConfig, trainer: Trainer, groups: Sequence[Sequence[tuple[str, bytes]]]
    ) -> None:
        self.trainer = trainer
        self.groups = groups
        is_live = config.train.vision_features == "live"
        self.views = ViewMaker(side=224, max_pixels=config.train.max_pixels) if is_live else None
        self.state = TrainState(1, 0, ())  # the first update has rate 0

    def __call__(self) -> None:
        """Each group is one update."""
        for number, group in enumerate(self.groups):
            captions, images = [caption for caption, _ in group], [image for _, image in group]
            keys = [f"{number}_title"] * len(group)
            batch = LaneBatch(0, 0, number * len(group), captions, keys, images, None)
            if self.views is not None:
                room = empty_views(len(group), self.views.side)
                for image, view in zip(images, room, strict=True):
                    self.views(image, [np.random.default_rng(number)], view[None])
                batch = replace(batch, views=room)
            self.state, _ = self.trainer.step([batch], self.state)
            self.state = replace(self.state, update=1)


def plain_updates(plain: PlainLoop, groups: Sequence[Sequence[tuple[str, bytes]]]) -> None:
    """The same updates by the plain loop."""
    for group in groups:
        plain.step([caption for caption, _ in group], [image for _, image in group], 1)


def watched(model: Any, optimizer: Any) -> dict[str, float]:
    """Seconds that both towers' forward passes and the optimizer take from now on, by name."""
    seconds: dict[str, float] = defaultdict(float)
    started: dict[str, float] = {}

    def start(stage: str) -> Callable[..., None]:
        def note(*_: object, **__: object) -> None:
            started[stage] = time.perf_counter()

        return note

    def end(stage: str) -> Callable[..., None]:
        def add(*_: object, **__: object) -> None:
            seconds[stage] += time.perf_counter() - started[stage]

        return add

    for stage, tower in (("vision", model.vision_model), ("text", model.text_model)):
        seconds[stage] = 0.0
        tower.register_forward_pre_hook(start(stage))
        tower.register_forward_hook(end(stage))
    seconds["optimizer"] = 0.0
    optimizer.register_step_pre_hook(start("optimizer"))
    optimizer.register_step_post_hook(end("optimizer"))
    return seconds


if __name__ == "__main__":
    main()
