"""Hold the cost model to real runs on this machine: predict, then run, then compare.

    python -m scripts.bench.scale_check CAPTIONS.csv [--column caption] [--json FILE]

Two runs, both in one thread and counted in processor time: `curate` over all captions with the real
small text encoder, and `train` for two outer steps with that encoder and a vision transformer of
random weights on pictures made for it.
"""

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curator import curate
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_curate.text_encoder.encoder import TextEncoder
from cit_train.config import replace_fields
from cit_train.outer_loop import train
from cit_train.recipes import default
from scripts.bench.scale_model import cost
from scripts.bench.scale_rig import jpeg
from scripts.bench.scale_scenarios import parameters, this_cpu
from scripts.bench.scale_shapes import MINILM, Machine, TowerShape, Workload

CLASSES = ("dog", "cat", "bird", "house", "car", "tree", "flower", "boat", "face", "computer")
# A ViT-S/16 for pictures of 224 pixels.
VIT_S16 = TowerShape(layers=12, width=384, inner=1_536, parameters=21_665_664)
TEXT = TextTowerConfig(text_encoder="package:minilm", pooling="mean")
LANES, BATCH, EVERY, UPDATES = 2, 32, 2, 4


@dataclass(frozen=True)
class Comparison:
    """A run, what the model said and what it took, in processor seconds."""

    name: str
    predicted: float
    actual: float

    @property
    def ratio(self) -> float:
        """Actual over predicted; above 1 the model is too optimistic."""
        return self.actual / self.predicted


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", type=Path, help="CSV with the captions")
    parser.add_argument("--column", default="caption")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    asked = parser.parse_args()
    with asked.captions.open(newline="", encoding="utf-8") as stream:
        captions = list(dict.fromkeys(row[asked.column] for row in csv.DictReader(stream)))
    torch.set_num_threads(1)
    measured = parameters()
    # Single numbers of the towers that run here, in the place of BERT-base's and ViT-B/16's.
    machine = replace(this_cpu(measured), embed_utilisation=measured["minilm_utilisation"])
    with tempfile.TemporaryDirectory(prefix="cit-check-") as folder:
        found = [
            check_curate(captions, machine, Path(folder) / "curate"),
            check_train(captions, machine, Path(folder) / "train"),
        ]
    print(f"{'run':<34}{'predicted':>12}{'actual':>12}{'ratio':>8}")
    for each in found:
        print(f"{each.name:<34}{each.predicted:>10.1f} s{each.actual:>10.1f} s{each.ratio:>8.2f}")
    if asked.json:
        asked.json.write_text(json.dumps([vars(each) for each in found], indent=1) + "\n")


def check_curate(captions: Sequence[str], machine: Machine, folder: Path) -> Comparison:
    """One pass of `cit curate --max-pairs all` over captions."""
    pool = _pool(captions, folder)
    metadata = _metadata(folder)
    config = CurateConfig(threshold=0.5, min_ratio=0.0)
    workload = Workload(
        name="curate",
        captions=len(captions),
        mean_tokens=_mean_tokens(captions),
        pass_ratio=0.1,
        min_ratio=0.0,
        metadata_entries=len(CLASSES),
        text=MINILM,
        lanes=1,
        updates=0,
    )
    predicted = cost(workload, machine, 1).total_seconds
    loading = _processor_seconds(lambda: TextEncoder.load(TEXT, device="cpu"))
    actual = _processor_seconds(
        lambda: curate(pool, metadata, TEXT, config, folder / "run", num_pairs=None, device="cpu")
    )
    return Comparison(f"curate, {len(captions):,} captions", predicted, actual - loading)


def check_train(captions: Sequence[str], machine: Machine, folder: Path) -> Comparison:
    """Two outer steps of `cit train`."""
    texts = captions[:512]
    pool = _pool(texts, folder, with_images=True)
    _metadata(folder)
    _vision_tower(folder / "vision")
    config = replace_fields(
        default(),
        pool=str(pool.path),
        metadata=str(folder / "classes.txt"),
        text_encoder=TEXT.text_encoder,
        pooling=TEXT.pooling,
        vision_encoder=str(folder / "vision"),
        threshold=0.99,
        min_ratio=0.5,
        lanes=LANES,
        batch_size=BATCH,
        curate_every=EVERY,
        max_updates=UPDATES,
        max_passes=4,
        pairs_per_shard=BATCH,
        device="cpu",
        threads=1,
    )
    projections = 512 * (MINILM.width + VIT_S16.width)
    workload = Workload(
        name="train",
        captions=len(texts),
        mean_tokens=_mean_tokens(texts),
        pass_ratio=0.0,
        min_ratio=0.5,
        metadata_entries=len(CLASSES),
        text=MINILM,
        vision=VIT_S16,
        trained_parameters=MINILM.parameters + projections,
        lanes=LANES,
        batch_size=BATCH,
        curate_every=EVERY,
        updates=UPDATES,
        image_bytes=len(_image(0)),
        pairs_per_shard=BATCH,
    )
    # Processor time counts what the shard threads do beside the training thread, too.
    predicted = sum(cost(workload, machine, 1).seconds.values())
    # What a run does before its first outer step is no part of the model.
    start = replace_fields(config, max_updates=EVERY)
    first = _processor_seconds(lambda: train(start, folder / "first"))
    both = _processor_seconds(lambda: train(config, folder / "both"))
    half = predicted * EVERY / UPDATES
    return Comparison(f"train, one outer step of {EVERY} updates", half, both - first)


def _processor_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _mean_tokens(captions: Sequence[str]) -> float:
    return float(TextEncoder.load(TEXT, device="cpu").tokenize(captions).counts.mean())


def _pool(captions: Sequence[str], folder: Path, *, with_images: bool = False) -> Pool:
    folder.mkdir(parents=True)
    source = folder / "pairs.csv"
    with source.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "image", "caption"])
        for row, caption in enumerate(captions):
            name = f"{row:06d}.jpg"
            writer.writerow([f"{row:06d}", name if with_images else "", caption])
            if with_images:
                (folder / name).write_bytes(_image(row))
    image = "image" if with_images else None
    columns = Columns(image_id="image_id", image=image, text=("caption",))
    return Pool.build([source], folder / "pool", columns=columns)


def _image(seed: int) -> bytes:
    return jpeg(np.random.default_rng(seed))


def _metadata(folder: Path) -> MetadataConfig:
    path = folder / "classes.txt"
    path.write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return MetadataConfig(metadata=str(path))


def _vision_tower(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    shape = VIT_S16
    config = ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=6,
        intermediate_size=shape.inner,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)


if __name__ == "__main__":
    main()
