"""Captions per second of the text encoder, against a plain padded loop and the GEMM limit.

    python scripts/bench/text_encoder.py CAPTIONS.csv [--column caption] [--num-captions 4096]

The limit is the rate of this machine's matrix products of the tower's own shapes; the ratio counts
real tokens only, so padding and everything that is no matrix product lower it.
"""

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import torch
from transformers import PreTrainedTokenizerBase

from cit_curate.config import TextTowerConfig
from cit_curate.text_encoder import ROWS, TextEncoder

REPEATS = 3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", help="CSV with the captions")
    parser.add_argument("--column", default="caption")
    parser.add_argument("--num-captions", type=int, default=4_096)
    parser.add_argument("--text-encoder", default="package:minilm")
    asked = parser.parse_args()
    with open(asked.captions, newline="", encoding="utf-8") as stream:  # noqa: PTH123
        captions = [row[asked.column] for row in csv.DictReader(stream)][: asked.num_captions]
    encoder = TextEncoder.load(TextTowerConfig(text_encoder=asked.text_encoder))
    tokens = sum(map(len, encoder.tokenizer(captions, truncation=True, max_length=32)["input_ids"]))
    config = encoder.tower.config
    flops = tokens * config.num_hidden_layers * _layer_flops(config)

    ways: dict[str, Callable[[], object]] = {
        "padded to 32, every caption": lambda: padded_loop(encoder, captions),
        "cit: distinct, by length": lambda: encoder.embed(captions),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    limits = []
    for _ in range(REPEATS):  # side by side, so that a drifting machine hits both
        for name, embed in ways.items():
            started = time.perf_counter()
            embed()
            seconds[name].append(time.perf_counter() - started)
        limits.append(gemm_rate(config))
    limit = statistics.median(limits)
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {now}"
    )
    distinct = len(set(captions))
    print(f"{len(captions):,} captions, {distinct:,} distinct, {tokens / len(captions):.1f} tokens")
    print(f"GEMM limit {limit / 1e9:.0f} GFLOP/s (min {min(limits) / 1e9:.0f})")
    baseline = statistics.median(next(iter(seconds.values())))
    print(f"{'way':<30}{'captions/s':>12}{'min':>8}{'max':>8}{'speed-up':>10}{'of GEMM':>9}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        rates = [len(captions) / t for t in (middle, max(times), min(times))]
        print(
            f"{name:<30}{rates[0]:>12,.0f}{rates[1]:>8,.0f}{rates[2]:>8,.0f}"
            f"{baseline / middle:>9.1f}x{flops / middle / limit:>9.0%}"
        )


@torch.inference_mode()
def padded_loop(encoder: TextEncoder, captions: Sequence[str]) -> torch.Tensor:
    """Every caption in arrival order, padded to 32: float32 [captions, dim]."""
    tokenizer: PreTrainedTokenizerBase = encoder.tokenizer
    pooled = []
    for start in range(0, len(captions), ROWS):
        batch = list(captions[start : start + ROWS])
        inputs = tokenizer(
            batch, padding="max_length", truncation=True, max_length=32, return_tensors="pt"
        )
        pooled.append(encoder.tower(**inputs).pooler_output)
    return torch.nn.functional.normalize(torch.cat(pooled), dim=-1)


def gemm_rate(config: object) -> float:
    """FLOP/s of the tower's own matrix shapes on a forward pass of 8-token captions."""
    width, inner = config.hidden_size, config.intermediate_size  # type: ignore[attr-defined]
    rows = torch.randn(ROWS * 8, width)
    wide = torch.randn(ROWS * 8, inner)
    square, up, down = (
        torch.randn(a, b) for a, b in ((width,) * 2, (inner, width), (width, inner))
    )
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < 1.0:
        for _ in range(4):
            torch.nn.functional.linear(rows, square)
        torch.nn.functional.linear(rows, up)
        torch.nn.functional.linear(wide, down)
        done += len(rows) * _layer_flops(config)
    return done / (time.perf_counter() - started)


def _layer_flops(config: object) -> int:
    """Floating-point operations of one token in one layer's matrix products."""
    width, inner = config.hidden_size, config.intermediate_size  # type: ignore[attr-defined]
    return int(2 * (4 * width * width + 2 * width * inner))


if __name__ == "__main__":
    main()
