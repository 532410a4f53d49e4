"""What the probes of `scale_probes` share: captions, a pool, images, text towers, and the clock."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cit_curate.config import TextTowerConfig
from cit_curate.pool.pool import Pool
from cit_curate.sources.columns import Columns
from cit_curate.text_encoder.encoder import TextEncoder
from scripts.bench.scale_shapes import BERT_BASE, TowerShape

# Of a pass that takes little beside Python and launches.
TINY_PASS_TOKENS = 64
WORDS = (
    "old",
    "red",
    "dog",
    "cat",
    "house",
    "river",
    "train",
    "night",
    "garden",
    "city",
    "street",
    "summer",
    "church",
    "boat",
)


@dataclass
class Rig:
    """What the probes share; built once, outside what is timed.

    Attributes:
        device: cpu or cuda.
        folder: Scratch space on the disk that is measured.
        captions: Made-up captions of 4 to 20 words.
        pool: A pool of them.
        images: JPEG files of 500 x 375 pixels.
    """

    device: str
    folder: Path
    captions: list[str]
    pool: Pool
    images: list[bytes]

    @classmethod
    def build(cls, device: str, folder: Path) -> "Rig":
        """Make captions, their pool and images."""
        rng = np.random.default_rng(0)
        lengths = rng.integers(4, 20, size=100_000)
        captions = [" ".join(rng.choice(WORDS, size=size)) for size in lengths]
        source = folder / "captions.csv"
        with source.open("w", encoding="utf-8") as stream:
            stream.write("image_id,caption\n")
            stream.writelines(f"i{row:07d},{row} {text}\n" for row, text in enumerate(captions))
        pool = Pool.build(
            [source], folder / "pool", columns=Columns(image_id="image_id", text=("caption",))
        )
        return cls(device, folder, captions, pool, [jpeg(rng) for _ in range(64)])

    @cached_property
    def minilm(self) -> TextEncoder:
        """The real small text encoder."""
        config = TextTowerConfig(text_encoder="package:minilm", pooling="mean")
        return TextEncoder.load(config, device=self.device)

    @cached_property
    def bert(self) -> TextEncoder:
        """A BERT-base with random weights and MiniLM's tokenizer, whose vocabulary is BERT's."""
        return TextEncoder(random_bert(BERT_BASE), self.minilm.tokenizer, device=self.device)

    @cached_property
    def tiny(self) -> TextEncoder:
        """12 layers of next to nothing: what is left is what a forward pass costs by itself."""
        shape = TowerShape(layers=12, width=12, inner=12, parameters=0)
        encoder = TextEncoder(random_bert(shape), self.minilm.tokenizer, device=self.device)
        assert encoder._packed is not None
        encoder._packed.pass_tokens = TINY_PASS_TOKENS
        return encoder

    def synchronize(self) -> None:
        """Wait for the accelerator."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def random_bert(shape: TowerShape) -> Any:
    """A BERT of a shape, with random weights."""
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=12,
            intermediate_size=shape.inner,
            attn_implementation="sdpa",
        )
    )


def jpeg(rng: np.random.Generator) -> bytes:
    """Smooth colours with some noise, about 98 KB like a photograph of YFCC."""
    coarse = Image.fromarray(rng.integers(256, size=(24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def seconds_of(work: Callable[[], object], rig: Rig) -> float:
    """Seconds of one call, on the clock of the rig's device."""
    clock = _clock(rig)
    rig.synchronize()
    started = clock()
    work()
    rig.synchronize()
    return clock() - started


def per_second(work: Callable[[], object], rig: Rig, *, seconds: float = 1.0) -> float:
    """Calls a second, after one that does not count."""
    clock = _clock(rig)
    work()
    rig.synchronize()
    started, done = clock(), 0
    while clock() - started < seconds:
        work()
        rig.synchronize()
        done += 1
    return done / (clock() - started)


def _clock(rig: Rig) -> Callable[[], float]:
    return time.perf_counter if rig.device == "cuda" else time.process_time
