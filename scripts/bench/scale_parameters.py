"""Measure the rates of docs/scale.md on the machine at hand.

    python -m scripts.bench.scale_parameters --out scripts/bench/scale_parameters.json
    python -m scripts.bench.scale_parameters --device cuda --out gpu.json

Each function measures the field of `Machine` that has its name, and runs what the project runs.
Rates of one core, and of a CPU that stands in for an accelerator, are those of one thread, in
processor time; only `select_captions` counts the wall.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BertConfig, BertModel

from cit_curate.config import CurateConfig, MetadataConfig, TextTowerConfig
from cit_curate.curation.curator import Curator
from cit_curate.images.read import read_image
from cit_curate.pool.mixed_order import MixedOrder
from cit_curate.pool.mixture import PoolMixture
from cit_curate.pool.pool import Pool
from cit_curate.records import PoolCursor
from cit_curate.run.ledger import Run
from cit_curate.text_encoder.encoder import TextEncoder
from cit_curate.text_encoder.load import load_text_tower
from cit_curate.text_encoder.packed import PASS_TOKENS
from cit_train.transforms import train_view
from scripts.bench.caption_pools import distinct_captions
from scripts.bench.fixed_cost import MIN_RATIO, made_pool, outer_steps
from scripts.bench.scale_model import INNER, LAYERS, VISION_TOKENS, WIDTH, forward_flops
from scripts.bench.text_encoder import matrix_products, pass_tokens

REPEATS = 3
# Of a forward pass that takes little beside Python and launches.
TINY_PASS_TOKENS = 64


@dataclass(frozen=True)
class Rig:
    """Where rates are measured: a device, and scratch space."""

    device: torch.device
    folder: Path

    @property
    def is_gpu(self) -> bool:
        """Whether it is no CPU; then there is more to do in one call."""
        return self.device.type != "cpu"

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one call: processor time on a CPU, wall time on a GPU."""
        clock = time.perf_counter if self.is_gpu else time.process_time
        started = clock()
        work()
        if self.is_gpu:
            torch.cuda.synchronize()
        return clock() - started

    def captions(self) -> list[str]:
        """Real captions that fill several forward passes."""
        return distinct_captions()[: 16_384 if self.is_gpu else 512]

    def pool(self) -> Pool:
        """A pool of 100,000 pairs."""
        return Pool.open(made_pool(self.folder / "pool-100000", 100_000))

    def autocast(self) -> torch.autocast:
        """Half precision on a GPU."""
        return torch.autocast(self.device.type, torch.float16, enabled=self.is_gpu)


def gemm_flops(rig: Rig) -> float:
    """FLOP/s of the matrix products of one pass of BERT-base."""
    tokens = PASS_TOKENS[rig.device.type]
    seconds = rig.seconds(lambda: matrix_products(BertConfig(), tokens, rig.device))
    return LAYERS * 2 * tokens * (4 * WIDTH**2 + 2 * WIDTH * INNER) / seconds


def embed_utilisation(rig: Rig) -> float:
    """Tokenising and the cost of a pass by itself are apart, for they are other parameters."""
    encoder, captions = _encoder(rig, WIDTH, INNER), rig.captions()
    counts = encoder.tokenize(captions).counts
    overhead = forward_overhead_seconds(rig) * counts.sum() / PASS_TOKENS[rig.device.type]
    seconds = _tower_seconds(rig, encoder, captions) - overhead
    return float(len(captions) * forward_flops(counts.mean()) / seconds / gemm_flops(rig))


def vision_utilisation(rig: Rig) -> float:
    """Share of the matrix products' rate that a ViT-B/16 of random weights reaches forward."""
    import timm

    tower = timm.create_model("vit_base_patch16_224", num_classes=0).to(rig.device).eval()
    pixels = torch.rand(256 if rig.is_gpu else 8, 3, 224, 224, device=rig.device)
    with torch.inference_mode(), rig.autocast():
        seconds = rig.seconds(lambda: tower(pixels))
    return len(pixels) * forward_flops(VISION_TOKENS) / seconds / gemm_flops(rig)


def train_utilisation(rig: Rig) -> float:
    """Share of the matrix products' rate of a BERT-base forward and backward, with dropout."""
    tower = _random_bert(WIDTH, INNER).to(rig.device).train()
    rows, tokens = 1_024 if rig.is_gpu else 64, 16
    ids = torch.randint(1_000, 20_000, (rows, tokens), device=rig.device)

    def step() -> None:
        with rig.autocast():
            loss = tower(ids, torch.ones_like(ids)).pooler_output.float().sum()
        loss.backward()

    return 3 * rows * forward_flops(tokens) / rig.seconds(step) / gemm_flops(rig)


def forward_overhead_seconds(rig: Rig) -> float:
    """Seconds of one forward pass of 12 layers that have next to nothing to compute."""
    with pass_tokens(rig.device, TINY_PASS_TOKENS):
        encoder = _encoder(rig, 12, 12)
    captions = rig.captions()
    passes = encoder.tokenize(captions).counts.sum() / TINY_PASS_TOKENS
    return float(_tower_seconds(rig, encoder, captions) / passes)


def tokenize_captions(rig: Rig) -> float:
    """Captions/s of the tokenizer on one core."""
    encoder, captions = _encoder(rig, 12, 12), distinct_captions()
    return len(captions) / rig.seconds(lambda: encoder.tokenize(captions))


def read_captions(rig: Rig) -> float:
    """Captions/s of a lane's scan: Parquet to batches in shuffled order."""
    order = MixedOrder(PoolMixture.of(rig.pool()), seed=1)
    read = partial(order.batches, PoolCursor(), 2_048, order.length)
    return order.length / rig.seconds(lambda: list(read()))


def select_captions(rig: Rig) -> float:
    """Captions/s of the second outer step, without reading, vectors, search and files."""
    names = rig.folder / "names.txt"
    names.write_text("".join(f"class {number}\n" for number in range(1_000)))
    config = CurateConfig(threshold=1.0, min_ratio=MIN_RATIO, max_passes=16, index="exact")
    curator = Curator(rig.pool(), MetadataConfig(metadata=str(names)), config)
    run = Run.create(rig.folder / "run", config={}, environment={}, overwrite=True)
    _, step = islice(outer_steps(curator, run), 2)
    return step.scanned / step.rules


def view_images(rig: Rig) -> float:
    """Images/s that are decoded, cropped and scaled to 224 pixels: about 98 KB, as YFCC's are."""
    rng = np.random.default_rng(2)
    coarse = Image.fromarray(rng.integers(256, size=(24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=88)
    jpeg = stream.getvalue()
    return 64 / rig.seconds(lambda: [train_view(read_image(jpeg), rng) for _ in range(64)])


PROBES: tuple[Callable[[Rig], float], ...] = (
    gemm_flops,
    embed_utilisation,
    vision_utilisation,
    train_utilisation,
    forward_overhead_seconds,
    tokenize_captions,
    read_captions,
    select_captions,
    view_images,
)


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    versions = f"torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}"
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    machine = f"{name}, {torch.get_num_threads()} thread, {versions}, {day}; median of {REPEATS}"
    with tempfile.TemporaryDirectory(prefix="cit-scale-") as folder:
        measured = measure(PROBES, Rig(torch.device(options.device), Path(folder)))
    if options.out:
        document = {"machine": machine, "parameters": measured}
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measure(probes: Sequence[Callable[[Rig], float]], rig: Rig) -> dict[str, dict[str, float]]:
    """Each rate, by name: median, lowest and highest of `REPEATS`, after one to warm up."""
    found = {}
    for probe in probes:
        values = [probe(rig) for _ in range(1 + REPEATS)][1:]
        row = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        print(probe.__name__, *(f"{name} {value:,.4g}" for name, value in row.items()), flush=True)
        found[probe.__name__] = row
    return found


def _tower_seconds(rig: Rig, encoder: TextEncoder, captions: Sequence[str]) -> float:
    """Seconds of embedding, tokenising apart."""
    tokenised = rig.seconds(lambda: encoder.tokenize(captions))
    return rig.seconds(lambda: encoder.embed(captions)) - tokenised


def _encoder(rig: Rig, width: int, inner: int) -> TextEncoder:
    """A BERT of random weights with MiniLM's tokenizer, whose vocabulary is BERT's."""
    _, tokenizer = load_text_tower(TextTowerConfig(text_encoder="package:minilm"))
    return TextEncoder(_random_bert(width, inner), tokenizer, device=rig.device)


def _random_bert(width: int, inner: int) -> BertModel:
    config = BertConfig(hidden_size=width, intermediate_size=inner, attn_implementation="sdpa")
    return BertModel(config)


if __name__ == "__main__":
    main()
